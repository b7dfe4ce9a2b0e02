"""Functions in plain arithmetic, compiled for this machine, against NumPy and SciPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.special
import tvm
from tvm import te

from sonic_convert.compilation import elementary

RANDOM = np.random.default_rng(0)
#: From the smallest to the largest numbers whose exponential is a normal float32.
USUAL = np.concatenate(
    [np.linspace(-87.3, 88.3, 200_001), RANDOM.standard_normal(100_000), 10.0 ** np.arange(-40, 1), [0.0]]
).astype(np.float32)
FAR = np.array([88.4, 89, 100, 1e3, 1e5, np.inf], np.float32)


def apply(formula: Callable[[Any], Any], values: np.ndarray) -> np.ndarray:
    """A formula for every number, compiled."""
    x = te.placeholder(values.shape, values.dtype.name, name="x")
    y = te.compute(values.shape, lambda i: formula(x[i]), name="y")
    function = te.create_prim_func([x, y]).with_attr("global_symbol", "main")
    compiled = tvm.compile(tvm.IRModule({"main": function}), target="llvm")
    result = tvm.runtime.empty(values.shape, y.dtype)
    compiled["main"](tvm.runtime.tensor(values), result)
    return np.asarray(result.numpy())


def ulps(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Differences in units of the last place of the expected float32."""
    spacing = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    return np.abs(found.astype(np.float64) - expected) / spacing


def test_exponential() -> None:
    found = apply(elementary.exp_of, USUAL)
    assert ulps(found, np.exp(USUAL.astype(np.float64))).max() <= 2
    assert found[-1] == 1


def test_exponential_is_limited_to_normal_numbers() -> None:
    beyond = apply(elementary.exp_of, np.concatenate([FAR, -FAR]))
    assert (beyond[: len(FAR)] == beyond[0]).all() and 2e38 < beyond[0] < np.inf
    assert (beyond[len(FAR) :] == beyond[-1]).all() and 0 < beyond[-1] < 1.3e-38


def test_sigmoid() -> None:
    found = apply(elementary.sigmoid_of, USUAL)
    assert ulps(found, scipy.special.expit(USUAL.astype(np.float64))).max() <= 4
    assert (apply(elementary.sigmoid_of, FAR) == 1).all()
    beyond = apply(elementary.sigmoid_of, -FAR)
    assert (beyond >= 0).all() and (beyond < 1e-38).all()


def test_silu() -> None:
    found = apply(elementary.silu_of, USUAL)
    exact = USUAL.astype(np.float64) * scipy.special.expit(USUAL.astype(np.float64))
    normal = np.abs(exact) > 1e-37  # below, quotients lose digits
    assert ulps(found[normal], exact[normal]).max() <= 4
    assert np.abs(found - exact)[~normal].max() < 1e-43
    np.testing.assert_array_equal(apply(elementary.silu_of, FAR), FAR)
    assert np.abs(apply(elementary.silu_of, -FAR[:-1])).max() < 1e-32


def test_error_function() -> None:
    values = np.concatenate([np.linspace(-6, 6, 200_001), USUAL, FAR, -FAR]).astype(np.float32)
    exact = scipy.special.erf(values.astype(np.float64))
    found = apply(elementary.erf_of, values)
    assert np.abs(found - exact).max() < 5e-7
    small = (np.abs(values) < 0.5) & (np.abs(exact) > 1e-37)
    assert ulps(found[small], exact[small]).max() <= 4
    np.testing.assert_array_equal(found[values == 0], 0)


@pytest.mark.parametrize("zero_point", [0, -128, 127, 13])
@pytest.mark.parametrize("scale", [0.25, 1.0, 0.0123])
def test_rounding(scale: float, zero_point: int) -> None:
    ends = [1e6, -1e6, 1e30, -1e30, np.inf, -np.inf, 0.0, -0.0]
    halves = np.arange(-300.5, 300) * scale
    some = RANDOM.uniform(-300 * scale, 300 * scale, 1000)
    values = np.concatenate([halves, some, ends]).astype(np.float32)
    found = apply(partial(elementary.quantized_of, scale=scale, zero_point=zero_point), values)
    assert found.dtype == np.int8
    expected = np.clip(np.rint(values / np.float32(scale)) + zero_point, -128, 127)
    np.testing.assert_array_equal(found, expected)
    if scale == 0.25:  # whose halves are exact
        evens = found[: len(halves)][np.abs(expected[: len(halves)]) < 127]
        assert ((evens - zero_point) % 2 == 0).all() and len(evens) > 200


@pytest.mark.parametrize("zero_point", [0, -128, 127])
def test_integers_come_back(zero_point: int) -> None:
    integers = np.arange(-128, 128).astype(np.int8)
    real = apply(partial(elementary.dequantized_of, scale=0.037, zero_point=zero_point), integers)
    np.testing.assert_array_equal(real, (integers.astype(np.float32) - zero_point) * np.float32(0.037))
    again = apply(partial(elementary.quantized_of, scale=0.037, zero_point=zero_point), real)
    np.testing.assert_array_equal(again, integers)


@pytest.mark.parametrize(
    "formula", [elementary.exp_of, elementary.sigmoid_of, elementary.silu_of, elementary.erf_of]
)
def test_what_is_not_a_number_stays_so(formula: Callable[[Any], Any]) -> None:
    # Else 'sonic verify' would take a broken submodel for a good one.
    assert np.isnan(apply(formula, np.full(21, np.nan, np.float32))).all()
