"""Normalisations against NumPy in float64; threads must not change a bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import te

from sonic_convert.compilation.scheduling import schedule_elementwise
from sonic_convert.compilation.tensor_programs import group_norm, lanes_of, layer_norm, tasks_of

EPSILON = 1e-5


def compiled(program: Any) -> Callable[..., np.ndarray]:
    """A program of three inputs, the first of the output's shape."""
    module = tvm.IRModule({"main": program.with_attr("global_symbol", "main")})
    function = tvm.compile(module, target="llvm")["main"]

    def run(x: np.ndarray, *others: np.ndarray) -> np.ndarray:
        y = tvm.runtime.tensor(np.full_like(x, np.nan))
        function(*map(tvm.runtime.tensor, (x, *others)), y)
        return np.asarray(y.numpy())

    return run


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exact_group_norm(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, groups: int, epsilon: float, silu: bool
) -> np.ndarray:
    split = x.astype(np.float64).reshape(*x.shape[:2], groups, -1)
    centred = split - split.mean((1, 3), keepdims=True)
    scaled = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + epsilon)).reshape(x.shape)
    y = scaled * gamma + beta
    return y / (1 + np.exp(-y)) if silu else y


@pytest.mark.parametrize(
    ("batch", "positions", "channels", "groups", "silu"),
    [
        (1, 1, 6, 3, False),  # one position
        (2, 7, 20, 5, True),
        (3, 97, 30, 10, False),
        (3, 97, 30, 10, True),
        (1, 101, 17, 17, False),  # channels by themselves, and no vectors
        (1, 13, 7, 1, True),
        (1, 1031, 96, 32, True),  # much work, but a prime number of positions
        (2, 1024, 64, 32, False),  # several tasks
        (2, 1024, 64, 32, True),
    ],
)
def test_group_norm(batch: int, positions: int, channels: int, groups: int, silu: bool) -> None:
    x, gamma, beta = normal(0, batch, positions, channels), normal(1, channels), normal(2, channels)
    run = compiled(group_norm(batch, positions, channels, groups, EPSILON, silu))
    expected = exact_group_norm(x, gamma, beta, groups, EPSILON, silu)
    np.testing.assert_allclose(run(x, gamma, beta), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "channels"), [(1, 6), (7, 20), (97, 30), (13, 17), (1031, 96), (1024, 64)])
def test_layer_norm(rows: int, channels: int) -> None:
    x, gamma, beta = normal(0, rows, channels), normal(1, channels), normal(2, channels)
    expected = exact_group_norm(x.reshape(rows, 1, channels), gamma, beta, 1, EPSILON, False)
    found = compiled(layer_norm(rows, channels, EPSILON))(x, gamma, beta)
    np.testing.assert_allclose(found, expected.reshape(rows, channels), rtol=1e-5, atol=1e-5)


def test_a_large_mean_costs_no_digits_of_the_variance() -> None:
    """With the mean of the squares in place of that of the differences, errors are fifty times as large."""
    gamma, beta = np.ones(8, np.float32), np.zeros(8, np.float32)
    x = 300 + normal(0, 1, 64, 8)
    exact = exact_group_norm(x, gamma, beta, 2, EPSILON, False)
    found = compiled(group_norm(1, 64, 8, 2, EPSILON, False))(x, gamma, beta)
    np.testing.assert_allclose(found, exact, atol=2e-4)
    exact = exact_group_norm(x.reshape(64, 1, 8), gamma, beta, 1, EPSILON, False).reshape(64, 8)
    found = compiled(layer_norm(64, 8, EPSILON))(x.reshape(64, 8), gamma, beta)
    np.testing.assert_allclose(found, exact, atol=2e-4)


def test_epsilon_counts_where_nothing_varies() -> None:
    x, gamma, beta = np.full((1, 9, 6), 2.5, np.float32), normal(1, 6), normal(2, 6)
    found = compiled(group_norm(1, 9, 6, 3, 1e-6, False))(x, gamma, beta)
    np.testing.assert_allclose(found, np.broadcast_to(beta, x.shape), atol=1e-3)
    rows = 0.01 * normal(3, 5, 6)
    expected = exact_group_norm(rows.reshape(5, 1, 6), gamma, beta, 1, 0.1, False).reshape(5, 6)
    np.testing.assert_allclose(compiled(layer_norm(5, 6, 0.1))(rows, gamma, beta), expected, atol=1e-6)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of TVM's threads; afterwards there is one for every processor."""
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    yield lambda count: configure(1, count)
    configure(1, len(os.sched_getaffinity(0)))


def test_threads_change_nothing(set_threads: Callable[[int], None]) -> None:
    gamma, beta = normal(1, 64), normal(2, 64)
    x = normal(0, 2, 1536, 64)
    assert tasks_of(1536, 64) == 6
    programs = (
        (compiled(group_norm(2, 1536, 64, 16, EPSILON, True)), x),
        (compiled(layer_norm(3072, 64, EPSILON)), x.reshape(3072, 64)),
    )
    count = tvm_ffi.get_global_func("runtime.NumThreads")
    for run, values in programs:
        results, seen = [], set()
        for threads in (1, 2, 3, 1):
            set_threads(threads)
            seen.add(count())
            results.append(run(values, gamma, beta))
        assert len(seen) > 1 or len(os.sched_getaffinity(0)) == 1
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])


def test_elementwise_loops_are_vectors_that_threads_share() -> None:
    """And sums are left alone, whose order would depend on it."""
    x = te.placeholder((1024, 64), "float32", name="x")
    column = te.reduce_axis((0, 64), name="column")
    results = {
        "double": te.compute(x.shape, lambda i, j: x[i, j] * 2),
        "few": te.compute((7,), lambda i: x[i, 0] + 1),
        "total": te.compute((1024,), lambda i: te.sum(x[i, column], axis=column)),
    }
    functions = {name: te.create_prim_func([x, y]) for name, y in results.items()}
    scheduled = schedule_elementwise(tvm.IRModule(functions))
    scripts = {variable.name_hint: function.script() for variable, function in scheduled.functions.items()}
    assert "T.vectorized(16)" in scripts["double"] and "T.parallel(4)" in scripts["double"]
    for name in ("few", "total"):
        tvm.ir.assert_structural_equal(scheduled[name], functions[name])
    mine = layer_norm(1024, 64, EPSILON)
    again = schedule_elementwise(tvm.IRModule({"mine": mine}))
    tvm.ir.assert_structural_equal(again["mine"], mine)


def test_tasks_are_equal_parts_of_the_positions() -> None:
    for positions in (1, 2, 97, 1031, 4096, 9216):
        for channels in (4, 30, 320):
            tasks = tasks_of(positions, channels)
            assert positions % tasks == 0 and tasks <= max(1, positions * channels // (1 << 14))
    assert tasks_of(4096, 320) == 64 and tasks_of(1031, 320) == 1
    assert [lanes_of(channels) for channels in (320, 6, 20, 30, 17)] == [16, 2, 4, 2, 1]
