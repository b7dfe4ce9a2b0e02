"""Scales and integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sonic_convert.quantization.arithmetic import affine, quantize_weight

FLOATS = st.floats(2**-13, 2**13, width=32)
ENDS = st.tuples(st.just(0.0) | FLOATS.map(lambda x: -x), st.just(0.0) | FLOATS)
EITHER = st.booleans()
WEIGHTS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.just(0.0) | st.floats(-100, 100, width=32),
)
ROUNDING = 1 + 1e-5  # of float32


@given(ENDS, EITHER, EITHER, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_values_of_the_range_come_back_within_half_a_step(
    ends: tuple[float, float], signed: bool, symmetric: bool, places: list[float]
) -> None:
    low, high = ends
    found = affine(low, high, signed, symmetric)
    values = (low + (high - low) * np.array(places)).astype(np.float32)
    slack = 1e-6 * max(-low, high)
    assert np.all(np.abs(found.simulate(values) - values) <= found.scale / 2 * ROUNDING + slack)


@given(ENDS, EITHER, EITHER)
def test_zero_stays_zero(ends: tuple[float, float], signed: bool, symmetric: bool) -> None:
    found = affine(*ends, signed, symmetric)
    assert found.zero_point.dtype == (np.int8 if signed else np.uint8)
    assert found.scale.dtype == np.float32 and found.scale > 0
    assert np.array_equal(found.simulate(np.zeros(3, np.float32)), np.zeros(3))


@given(ENDS, EITHER)
def test_a_symmetric_range_has_its_zero_in_the_middle(ends: tuple[float, float], signed: bool) -> None:
    found = affine(*ends, signed, symmetric=True)
    assert found.zero_point == (0 if signed else 128)
    assert found.scale == pytest.approx(max(*map(abs, ends), 1e-12) / 127)


@given(ENDS, EITHER, FLOATS)
def test_values_beyond_the_range_become_its_end(ends: tuple[float, float], signed: bool, more: float) -> None:
    low, high = ends
    found = affine(low, high, signed)
    beyond = found.simulate(np.array([low - more, high + more], np.float32))
    step = found.scale * ROUNDING + 1e-12  # what a range of nothing is wide
    assert abs(beyond[0] - low) <= step and abs(beyond[1] - high) <= step


@given(EITHER)
def test_a_range_of_nothing_is_still_a_range(signed: bool) -> None:
    found = affine(0.0, 0.0, signed)
    assert np.isfinite(found.scale) and found.scale > 0
    assert found.simulate(np.zeros(1, np.float32)) == 0


@given(WEIGHTS, st.data())
def test_each_output_of_a_weight_has_a_scale(weight: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    found = quantize_weight(weight, axis)
    assert found.values.dtype == np.int8 and found.values.min() >= -127
    assert found.scales.shape == (weight.shape[axis],) and found.scales.dtype == np.float32
    assert found.floats.dtype == np.float32
    largest = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(axis=1)
    np.testing.assert_allclose(found.scales, np.maximum(largest, 1e-12) / 127, rtol=1e-6)
    errors = np.abs(np.moveaxis(found.floats - weight, axis, -1))
    assert np.all(errors <= found.scales / 2 * ROUNDING + 1e-6 * largest)


@given(WEIGHTS, st.data())
def test_a_whole_weight_can_have_one_scale(weight: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    found = quantize_weight(weight, axis, per_channel=False)
    assert found.scales.shape == () and found.scales.dtype == np.float32
    assert found.values.dtype == np.int8 and found.values.min() >= -127
    largest = np.abs(weight).max()
    assert np.all(np.abs(found.floats - weight) <= found.scales / 2 * ROUNDING + 1e-6 * largest)


def test_one_large_output_does_not_coarsen_the_others() -> None:
    weight = np.array([[1000.0, 0.1], [-500.0, 0.07]], np.float32)
    each, whole = quantize_weight(weight, 1), quantize_weight(weight, 1, per_channel=False)
    assert np.abs(each.floats - weight)[:, 1].max() < 1e-3
    assert np.all(whole.floats[:, 1] == 0)
