"""Runs under the emulator: compares the bridge's functions with NumPy.

    python3 check_acl_bridge.py libsonic_acl.so CHECK

Matrix products in float64 use einsum instead of BLAS: OpenBLAS is wrong on some emulated processors.
"""

from __future__ import annotations

import ctypes
import resource
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

RANDOM = np.random.default_rng(0)
NO_PADS = (0, 0, 0, 0)
ONE_PAD = (1, 1, 1, 1)
GEMM_ERROR = 4e-6  # maximum, relative to the root mean square
WINOGRAD_ERROR = 6e-5


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def int8(*shape: int) -> np.ndarray:
    return RANDOM.integers(-127, 128, shape).astype(np.int8)


def call(name: str, *arguments: Any) -> None:
    wrapped = [tvm_ffi.from_dlpack(a) if isinstance(a, np.ndarray) else a for a in arguments]
    tvm_ffi.get_global_func(f"sonic.acl.{name}")(*wrapped)


def result(
    name: str, arguments: tuple[Any, ...], shape: tuple[int, ...], dtype: type = np.float32
) -> np.ndarray:
    output: np.ndarray = np.full(shape, 77, dtype)
    call(name, *arguments, output)
    return output


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b in float64 (exact for integers), without BLAS."""
    return np.einsum("...ik,...kj->...ij", a.astype(np.float64), b.astype(np.float64), optimize=False)


def assert_near(found: np.ndarray, expected: np.ndarray, error: float, what: object) -> None:
    difference = np.abs(found - expected).max() / np.sqrt((expected**2).mean())
    assert difference <= error, (what, difference)


@dataclass(frozen=True)
class Convolution:
    input: tuple[int, int, int, int]
    outputs: int
    kernel: tuple[int, int]
    stride: int = 1
    pads: tuple[int, int, int, int] = ONE_PAD  # top, left, bottom, right

    def geometry(self) -> tuple[int, ...]:
        return (self.stride, self.stride, *self.pads)

    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, *self.kernel, self.input[3])

    def apply(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, outside: float = 0.0) -> np.ndarray:
        top, left, bottom, right = self.pads
        rows = ((0, 0), (top, bottom), (left, right), (0, 0))
        padded = np.pad(x.astype(np.float64), rows, constant_values=outside)
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.kernel, axis=(1, 2))
        windows = windows[:, :: self.stride, :: self.stride].transpose(0, 1, 2, 4, 5, 3)
        batch, height, width = windows.shape[:3]
        lines = windows.reshape(batch * height * width, -1)
        flat = product(lines, weight.reshape(self.outputs, -1).T) + bias
        return flat.reshape(batch, height, width, self.outputs)


CONVOLUTIONS = [
    Convolution((2, 9, 7, 8), 12, (3, 3)),  # conv_in
    Convolution((1, 5, 6, 64), 4, (3, 3)),  # conv_out
    Convolution((2, 7, 11, 16), 20, (3, 1), pads=(1, 0, 1, 0)),  # temporal
    Convolution((1, 8, 8, 16), 8, (3, 3), stride=2),
    Convolution((1, 8, 8, 5), 7, (3, 3), stride=2, pads=(0, 0, 1, 1)),
    Convolution((3, 4, 4, 10), 6, (1, 1), pads=NO_PADS),
    Convolution((2, 6, 5, 3), 9, (1, 1), stride=2, pads=NO_PADS),
    Convolution((1, 1, 1, 4), 3, (3, 3)),
    Convolution((2, 3, 3, 8), 8, (3, 3)),
    Convolution((1, 10, 10, 4), 4, (5, 5), pads=(2, 2, 2, 2)),
    Convolution((1, 9, 9, 70), 70, (3, 3)),
    Convolution((1, 5, 5, 4), 4, (3, 3), pads=(4, 5, 6, 7)),
    Convolution((1, 29, 29, 3), 8, (14, 14), stride=14, pads=NO_PADS),  # patch embedding
    Convolution((2, 1, 20, 6), 5, (1, 3), pads=(0, 1, 0, 1)),
    Convolution((5, 64, 64, 3), 5, (3, 3)),  # processed image by image
    Convolution((1, 167, 131, 3), 2, (3, 3)),  # processed in pieces
    Convolution((1, 201, 203, 3), 2, (3, 3), stride=2, pads=(0, 1, 1, 0)),
]


def check_convolutions() -> None:
    for number, shape in enumerate(CONVOLUTIONS):
        x, weight, bias = normal(*shape.input), normal(*shape.weight_shape()), normal(shape.outputs)
        expected = shape.apply(x, weight, bias)
        for name in ("convolution2d", "gemm_convolution2d", "winograd_convolution2d"):
            if "winograd" in name and (shape.stride > 1 or shape.kernel == (1, 1) or max(shape.pads) > 3):
                continue
            arguments = (x, weight, bias, f"convolution {number}", *shape.geometry())
            first = result(name, arguments, expected.shape)
            assert_near(first, expected, GEMM_ERROR if "gemm" in name else WINOGRAD_ERROR, (name, shape))
            # The reshaped weights are cached now, so the weights of the call are ignored.
            other = (x, np.zeros_like(weight), *arguments[2:])
            np.testing.assert_array_equal(result(name, other, expected.shape), first)


def check_products() -> None:
    for rows, depth, columns in [
        (1, 7, 5), (3, 4, 1), (50, 33, 17), (1, 64, 64), (257, 130, 24), (17_000, 3, 2),
    ]:  # fmt: skip
        x, weight, bias = normal(rows, depth), normal(depth, columns), normal(columns)
        found = result("linear", (x, weight, bias, f"linear {rows} {depth}"), (rows, columns))
        assert_near(found, product(x, weight) + bias, GEMM_ERROR, (rows, depth, columns))
    for batch, rows, depth, columns in [
        (1, 1, 1, 1), (5, 25, 32, 25), (2, 300, 20, 700), (1, 7, 513, 5), (200, 4, 4, 1),
    ]:  # fmt: skip
        a, b = normal(batch, rows, depth), normal(batch, depth, columns)
        for again in (1, -2):  # b is not cached
            expected = product(a, again * b)
            found = result("batch_matmul", (a, again * b, 0), expected.shape)
            assert_near(found, expected, GEMM_ERROR, (batch, rows, depth, columns))
            transposed = np.ascontiguousarray(again * b.transpose(0, 2, 1))
            found = result("batch_matmul", (a, transposed, 1), expected.shape)
            assert_near(found, expected, GEMM_ERROR, (batch, rows, depth, columns))


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, scale: float) -> np.ndarray:
    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    scores = scale * product(split(q), split(k).transpose(0, 1, 3, 2))
    return product(softmax(scores), split(v)).transpose(0, 2, 1, 3).reshape(q.shape)


def check_attention() -> None:
    for batch, queries, keys, heads, width in [
        (1, 1, 1, 1, 1), (100, 25, 25, 4, 8), (2, 300, 300, 2, 10), (1, 40, 1100, 3, 8), (3, 64, 4, 2, 16),
        (70, 1, 7, 5, 5), (2, 9, 1, 2, 64), (1, 513, 65, 1, 40),
    ]:  # fmt: skip
        q, k, v = (normal(batch, length, heads * width) for length in (queries, keys, keys))
        found = result("attention", (q, 2 * k, v, heads, width**-0.5), q.shape)
        assert_near(found, attention(q, 2 * k, v, heads, width**-0.5), 1e-5, (batch, queries, keys, heads))
    # Scores that increase from block to block and differ widely.
    q, k, v = normal(1, 3, 4), normal(1, 1500, 4), normal(1, 1500, 4)
    k *= np.linspace(0.1, 30, 1500, dtype=np.float32)[:, None]
    assert_near(result("attention", (q, k, v, 1, 1.0), q.shape), attention(q, k, v, 1, 1.0), 1e-4, "rising")
    for rows, columns in [(1, 1), (5, 3), (1000, 25), (7, 1024), (3, 6)]:
        x = 10 * normal(rows, columns)
        found = result("softmax", (x,), x.shape)
        np.testing.assert_allclose(found, softmax(x.astype(np.float64)), rtol=1e-5, atol=3e-7)


def check_memory() -> None:
    """All scores would take 64 MB, ACL's im2col copy 400 MB, and all Winograd tiles 130 MB."""
    x, weight, bias = normal(1, 4096, 4), normal(64, 3, 3, 8), normal(64)
    image = normal(1, 448, 448, 8)
    output, convolved = np.zeros_like(x), np.zeros((1, 448, 448, 64), np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call("attention", x, x, x, 1, 1.0, output)
    call("gemm_convolution2d", image, weight, bias, "memory", 1, 1, *ONE_PAD, convolved)
    call("winograd_convolution2d", image, weight, bias, "memory", 1, 1, *ONE_PAD, convolved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "KB"


def to_int8(values: np.ndarray, zero: int) -> np.ndarray:
    return np.clip(np.rint(values) + zero, -128, 127).astype(np.int8)


def assert_quantized(
    name: str, operands: tuple[np.ndarray, ...], more: tuple[Any, ...], sums: np.ndarray, key: str
) -> None:
    """Check both outputs of a quantized layer, given the exact integer sums including the bias."""
    weight_scales = operands[2]
    scale, zero, output_zero = 0.02, 3, -7
    output_scale = float(np.abs(sums * weight_scales).max() * scale / 150)  # some values are out of range
    factors = np.float32(scale) * weight_scales / np.float32(output_scale)
    expected = to_int8(sums.astype(np.float32) * factors, output_zero)
    found = result(name, (*operands, key, scale, zero, output_scale, output_zero, *more), sums.shape, np.int8)
    np.testing.assert_array_equal(found, expected)
    real = result(f"{name}_float", (*operands, key, scale, zero, *more), sums.shape)
    np.testing.assert_allclose(real, sums * weight_scales.astype(np.float64) * scale, rtol=3e-7, atol=1e-6)


def check_integers() -> None:
    for number, shape in enumerate(CONVOLUTIONS):
        x, weight = int8(*shape.input), int8(*shape.weight_shape())
        scales = RANDOM.uniform(0.001, 0.01, shape.outputs).astype(np.float32)
        bias = RANDOM.integers(-5000, 5000, shape.outputs).astype(np.int32)
        sums = shape.apply(x.astype(np.int32) - 3, weight, bias)
        assert_quantized(
            "quantized_convolution2d", (x, weight, scales, bias), shape.geometry(), sums, f"integers {number}"
        )
    for rows, depth, columns in [
        (1, 7, 5), (3, 4, 1), (50, 33, 17), (1, 64, 64), (129, 200, 64), (40, 40, 40),
    ]:  # fmt: skip
        x, weight = int8(rows, depth), int8(depth, columns)
        scales = RANDOM.uniform(0.001, 0.01, columns).astype(np.float32)
        bias = RANDOM.integers(-5000, 5000, columns).astype(np.int32)
        sums = product(x.astype(np.int32) - 3, weight) + bias
        assert_quantized("quantized_linear", (x, weight, scales, bias), (), sums, f"integers {rows} {depth}")
    values = 10 * normal(3, 5, 7)
    values[0, 0, :4] = 0.25, 0.75, 1e30, -1e30
    found = result("quantize", (values, 0.5, 3), values.shape, np.int8)
    np.testing.assert_array_equal(found, to_int8(values / np.float32(0.5), 3))


@dataclass(frozen=True, eq=False)
class Job:
    """A call that is large enough to be split among threads."""

    name: str
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: type = np.float32

    def run(self) -> bytes:
        return result(self.name, self.arguments, self.shape, self.dtype).tobytes()

    def moved(self, values: int) -> Job:
        """The same call with arrays that start this many values after the start of a cache line."""

        def move(array: Any) -> Any:
            if not isinstance(array, np.ndarray):
                return array
            room = np.empty(array.nbytes + 128 + values * array.itemsize, np.uint8)
            start = -room.ctypes.data % 64 + values * array.itemsize
            moved = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            moved[...] = array
            return moved

        return replace(self, arguments=tuple(map(move, self.arguments)))


def jobs() -> list[Job]:
    made: list[Job] = []
    for name in ("gemm_convolution2d", "winograd_convolution2d"):
        for size, channels in ((16, 32), (8, 128)):
            operands = (normal(2, size, size, channels), normal(64, 3, 3, channels), normal(64))
            made.append(Job(name, (*operands, f"job {len(made)}", 1, 1, *ONE_PAD), (2, size, size, 64)))
    for rows, depth, columns in ((1000, 128, 128), (8, 1024, 1024), (1, 512, 8192), (70, 2000, 100)):
        operands = (normal(rows, depth), normal(depth, columns), normal(columns))
        made.append(Job("linear", (*operands, f"job {len(made)}"), (rows, columns)))
    made.append(Job("batch_matmul", (normal(5, 300, 32), normal(5, 32, 700), 0), (5, 300, 700)))
    made.append(Job("attention", tuple(normal(96, 25, 64) for _ in range(3)) + (4, 0.2), (96, 25, 64)))
    made.append(Job("attention", tuple(normal(1, 600, 32) for _ in range(3)) + (2, 0.2), (1, 600, 32)))
    made.append(Job("softmax", (normal(9000, 25),), (9000, 25)))
    scales, bias = np.full(64, 0.01, np.float32), np.arange(64, dtype=np.int32)
    integers = (int8(4, 16, 16, 64), int8(64, 3, 3, 64), scales, bias)
    quantized = (*integers, f"job {len(made)}", 0.02, 3, 0.5, 1, 1, 1, *ONE_PAD)
    made.append(Job("quantized_convolution2d", quantized, (4, 16, 16, 64), np.int8))
    return made


def check_threads() -> None:
    """Results are bitwise equal for any number of threads, alignment of arrays and state of the cache."""
    everything = jobs()
    call("set_threads", 1)
    expected = [job.run() for job in everything]
    for threads, offset in ((2, 0), (3, 1), (8, 5)):
        call("set_threads", threads)
        assert [job.moved(offset).run() for job in everything] == expected, threads
        call("clear")
    call("set_threads", 8)
    assert [job.run() for job in everything] == expected


def check_callers() -> None:
    """Several threads call at the same time while weights are cached and forgotten."""
    everything = jobs()
    call("set_threads", 1)
    expected = [job.run() for job in everything]
    call("set_threads", 2)
    call("clear")
    wrong: list[object] = []

    def caller(seed: int) -> None:
        order = np.random.default_rng(seed)
        for index in np.concatenate([order.permutation(len(everything)) for _ in range(2)]):
            try:
                if everything[index].run() != expected[index]:
                    wrong.append(everything[index].name)
            except Exception as error:
                wrong.append(error)
            if index == 0:
                call("forget", [f"job {number}" for number in range(4)])

    callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(3)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong, wrong


def check_keys() -> None:
    """Weights are cached under their key until it is forgotten, also if a copy of the library is loaded."""
    x, weight, bias = normal(4, 8), normal(8, 8), normal(8)
    first = result("linear", (x, weight, bias, "a"), x.shape)
    assert_near(result("linear", (x, 2 * weight, bias, "a"), x.shape), first, 0, "cached")
    doubled = product(x, 2 * weight) + bias
    assert_near(result("linear", (x, 2 * weight, bias, "b"), x.shape), doubled, GEMM_ERROR, "another key")
    call("forget", ["a", "unknown"])
    assert_near(result("linear", (x, 2 * weight, bias, "a"), x.shape), doubled, GEMM_ERROR, "forgotten")
    # Another number of rows with the same weights.
    more = normal(5, 8)
    found = result("linear", (more, weight, bias, "a"), more.shape)
    assert_near(found, product(more, weight) + bias, GEMM_ERROR, "rows")
    with tempfile.TemporaryDirectory() as folder:
        ctypes.CDLL(str(shutil.copy(sys.argv[1], Path(folder) / "copy.so")))
    assert_near(result("linear", (x, weight, bias, "b"), x.shape), doubled, GEMM_ERROR, "loaded again")
    assert "v24.11" in tvm_ffi.get_global_func("sonic.acl.version")()


def check_errors() -> None:
    x, heads = normal(2, 3), normal(1, 2, 6)
    image, kernel, bias = normal(1, 8, 8, 4), normal(4, 3, 3, 4), normal(4)
    convolution = (image, kernel, bias, "k")
    cases: list[tuple[str, tuple[Any, ...], str]] = [
        ("linear", (x, normal(4, 5), bias, "k", normal(2, 5)),
         "the weight has the shape (4, 5) instead of (3, any)"),
        ("linear", (x, normal(3, 4), bias, "k", np.zeros((2, 4))), "the output must be a tensor of float32"),
        ("linear", (x, normal(3), bias, "k", normal(2, 4)), "the weight has too few dimensions: (3)"),
        ("softmax", (normal(0, 3), normal(0, 3)), "the input has the shape (0, 3) instead of (any, any)"),
        ("softmax", (normal(4, 6)[:, ::2], normal(4, 3)), "the input must be contiguous"),
        ("attention", (heads, heads, heads, 4, 1.0, heads),
         "q's rows of 6 values do not divide into 4 heads"),
        ("attention", (heads, heads, heads, 2, 0.0, heads), "the scale must be positive, not 0"),
        ("batch_matmul", (normal(2, 3, 4), normal(1, 4, 5), 0, normal(2, 3, 5)),
         "b has the shape (1, 4, 5) instead of (2, 4, any)"),
        ("winograd_convolution2d", (*convolution, 2, 2, *ONE_PAD, normal(1, 4, 4, 4)),
         "Winograd's method needs"),
        ("convolution2d", (image[:, :2, :2].copy(), *convolution[1:], 1, 1, *NO_PADS, image),
         "the kernel (4, 3, 3, 4) is larger than the padded input (1, 2, 2, 4)"),
        ("convolution2d", (*convolution, 0, 1, *ONE_PAD, image), "stride_h must be at least 1, not 0"),
        ("convolution2d", (*convolution, 1, 1, *NO_PADS, image),
         "the output has the shape (1, 8, 8, 4) instead of (1, 6, 6, 4)"),
        ("quantize", (x, -1.0, 0, int8(2, 3)), "the output scale must be positive, not -1"),
        ("quantize", (x, 1.0, 300, int8(2, 3)), "the output zero point must be from -128 to 127, not 300"),
        ("set_threads", (-1,), "the number of threads must be from 0"),
    ]  # fmt: skip
    for name, arguments, message in cases:
        try:
            call(name, *arguments)
        except ValueError as error:
            assert message in str(error), (name, str(error))
        else:
            raise AssertionError(f"{name} accepts what it should not: {message}")


CHECKS: dict[str, Callable[[], None]] = {
    "convolutions": check_convolutions,
    "products": check_products,
    "attention": check_attention,
    "integers": check_integers,
    "memory": check_memory,
    "threads": check_threads,
    "callers": check_callers,
    "keys": check_keys,
    "errors": check_errors,
}

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])
    CHECKS[sys.argv[2]]()
