"""Hand-written loop nests that TVM would not vectorize: normalisations, on vectors of channels.

TVM's own lowering of a normalisation is a reduction in scalar steps, since a compiler may not reorder float
sums. Here the order is part of the program: sums run over positions with a vector of channels, so results do
not depend on the number of threads.
"""

from __future__ import annotations

import math
from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

SCHEDULED = "sonic.scheduled"  # the attribute of functions that are ready for LLVM
LANES = 16  # of a vector: four 128-bit registers
_OPAQUE = 8  # TVM's number for functions that are not fused with others
_CHUNK_ELEMENTS = 1 << 14  # elements per parallel task


def lanes_of(channels: int) -> int:
    """The longest vector length that divides `channels`, at most `LANES`."""
    return math.gcd(channels, LANES)


def tasks_of(positions: int, channels: int) -> int:
    """The number of equal parts into which the positions are split for threads; it depends on sizes alone."""
    wanted = max(1, positions * channels // _CHUNK_ELEMENTS)
    return next(count for count in range(min(wanted, positions), 0, -1) if positions % count == 0)


@cache  # TVM takes a tenth of a second to parse one, and a UNet has few different ones
def group_norm(
    batch: int, positions: int, channels: int, groups: int, epsilon: float, silu: bool
) -> PrimFunc:
    """GroupNorm of float32 (batch, positions, channels), with SiLU if `silu`.

    y = (x - mean) / sqrt(variance + epsilon) * gamma + beta with the mean and variance of each group of
    channels over all positions (Wu and He 2018); the variance is computed from differences from the mean.
    """
    lanes = lanes_of(channels)
    blocks = channels // lanes
    tasks = tasks_of(positions, channels)
    steps = positions // tasks
    width = channels // groups
    count = float(positions * width)
    if silu:
        from sonic_convert.compilation.elementary import silu_of as finish
    else:
        from sonic_convert.compilation.elementary import identity as finish

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        x: T.Buffer((batch, positions, channels), "float32"),
        gamma: T.Buffer((channels,), "float32"),
        beta: T.Buffer((channels,), "float32"),
        y: T.Buffer((batch, positions, channels), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE, SCHEDULED: True})
        parts = T.alloc_buffer((batch, tasks, channels), "float32")
        mean = T.alloc_buffer((batch, channels), "float32")
        scale = T.alloc_buffer((batch, channels), "float32")
        for it in T.parallel(batch * tasks):
            for b in T.serial(blocks):
                total = T.alloc_buffer((lanes,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    total[v] = T.float32(0)
                for p in T.serial(steps):
                    for v in T.vectorized(lanes):
                        total[v] = total[v] + x[it // tasks, it % tasks * steps + p, b * lanes + v]
                for v in T.vectorized(lanes):
                    parts[it // tasks, it % tasks, b * lanes + v] = total[v]
        for i in T.serial(batch):
            for g in T.serial(groups):
                whole = T.alloc_buffer((1,), "float32", scope="local")
                whole[0] = T.float32(0)
                for t in T.serial(tasks):
                    for c in T.serial(width):
                        whole[0] = whole[0] + parts[i, t, g * width + c]
                for c in T.serial(width):
                    mean[i, g * width + c] = whole[0] / T.float32(count)
        for it in T.parallel(batch * tasks):
            for b in T.serial(blocks):
                centre = T.alloc_buffer((lanes,), "float32", scope="local")
                squares = T.alloc_buffer((lanes,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    centre[v] = mean[it // tasks, b * lanes + v]
                    squares[v] = T.float32(0)
                for p in T.serial(steps):
                    for v in T.vectorized(lanes):
                        squares[v] = squares[v] + (
                            x[it // tasks, it % tasks * steps + p, b * lanes + v] - centre[v]
                        ) * (x[it // tasks, it % tasks * steps + p, b * lanes + v] - centre[v])
                for v in T.vectorized(lanes):
                    parts[it // tasks, it % tasks, b * lanes + v] = squares[v]
        for i in T.serial(batch):
            for g in T.serial(groups):
                spread = T.alloc_buffer((1,), "float32", scope="local")
                spread[0] = T.float32(0)
                for t in T.serial(tasks):
                    for c in T.serial(width):
                        spread[0] = spread[0] + parts[i, t, g * width + c]
                spread[0] = T.float32(1) / T.sqrt(spread[0] / T.float32(count) + T.float32(epsilon))
                for c in T.serial(width):
                    scale[i, g * width + c] = spread[0] * gamma[g * width + c]
        for it in T.parallel(batch * tasks):
            for b in T.serial(blocks):
                factor = T.alloc_buffer((lanes,), "float32", scope="local")
                shift = T.alloc_buffer((lanes,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    factor[v] = scale[it // tasks, b * lanes + v]
                    shift[v] = (
                        beta[b * lanes + v]
                        - mean[it // tasks, b * lanes + v] * scale[it // tasks, b * lanes + v]
                    )
                for p in T.serial(steps):
                    for v in T.vectorized(lanes):
                        y[it // tasks, it % tasks * steps + p, b * lanes + v] = finish(
                            x[it // tasks, it % tasks * steps + p, b * lanes + v] * factor[v] + shift[v]
                        )

    return kernel


@cache
def layer_norm(rows: int, channels: int, epsilon: float) -> PrimFunc:
    """LayerNorm of float32 (rows, channels): as `group_norm` with one group, separately for every row."""
    lanes = lanes_of(channels)
    blocks = channels // lanes
    tasks = tasks_of(rows, channels)
    steps = rows // tasks

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        x: T.Buffer((rows, channels), "float32"),
        gamma: T.Buffer((channels,), "float32"),
        beta: T.Buffer((channels,), "float32"),
        y: T.Buffer((rows, channels), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE, SCHEDULED: True})
        for t in T.parallel(tasks):
            for r in T.serial(steps):
                sums = T.alloc_buffer((lanes,), "float32", scope="local")
                one = T.alloc_buffer((2,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    sums[v] = T.float32(0)
                for b in T.serial(blocks):
                    for v in T.vectorized(lanes):
                        sums[v] = sums[v] + x[t * steps + r, b * lanes + v]
                one[0] = T.float32(0)
                for v in T.unroll(lanes):
                    one[0] = one[0] + sums[v]
                one[0] = one[0] / T.float32(channels)
                for v in T.vectorized(lanes):
                    sums[v] = T.float32(0)
                for b in T.serial(blocks):
                    for v in T.vectorized(lanes):
                        sums[v] = sums[v] + (x[t * steps + r, b * lanes + v] - one[0]) * (
                            x[t * steps + r, b * lanes + v] - one[0]
                        )
                one[1] = T.float32(0)
                for v in T.unroll(lanes):
                    one[1] = one[1] + sums[v]
                one[1] = T.float32(1) / T.sqrt(one[1] / T.float32(channels) + T.float32(epsilon))
                for b in T.serial(blocks):
                    for v in T.vectorized(lanes):
                        y[t * steps + r, b * lanes + v] = (x[t * steps + r, b * lanes + v] - one[0]) * one[
                            1
                        ] * gamma[b * lanes + v] + beta[b * lanes + v]

    return kernel
