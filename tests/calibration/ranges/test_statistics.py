"""Statistics of tensors, and the quantization ranges chosen from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sonic.errors import InputError
from sonic_calibration.ranges.statistics import BINS, METHODS, TensorStatistics, choose_range

# Multiples of a power of two: their sums are exact in any order, and so are the histogram's bins.
INTEGERS = st.integers(-3000, 3000)
EXACT = st.tuples(st.integers(1, 4), st.integers(-12, 12)).flatmap(
    lambda form: st.lists(
        arrays(np.int32, st.tuples(st.integers(1, 5), st.just(form[0])), elements=INTEGERS).map(
            lambda part: part.astype(np.float32) * np.float32(2.0 ** form[1])
        ),
        min_size=1,
        max_size=6,
    )
)
# Larger values overflow the computation of bins; a test of their own is below.
ANY = arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 4)),
    elements=st.floats(-(2.0**126), 2.0**126, width=32),
)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))


def seen(*parts: np.ndarray, axis: int = -1) -> TensorStatistics:
    statistics = TensorStatistics()
    for part in parts:
        statistics.update(part, axis)
    return statistics


def heavy_tailed(seed: int, count: int = 20_000) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, (count, 1)).astype(np.float32)


def quantization_error(values: np.ndarray, low: float, high: float) -> float:
    """Mean squared error of quantization to 256 levels, one of which is zero."""
    step = (high - low) / 255
    zero = np.rint(-low / step)
    levels = np.clip(np.rint(values.astype(float) / step) + zero, 0, 255)
    return float((((levels - zero) * step - values) ** 2).mean())


@given(st.lists(ANY.map(lambda part: part[:, :1]), min_size=1, max_size=4))
def test_the_histogram_keeps_every_count_while_it_widens(parts: list[np.ndarray]) -> None:
    statistics = seen(*parts)
    assert statistics.histogram.sum() == statistics.count == sum(map(len, parts))
    assert np.abs(np.concatenate(parts)).max() < statistics.limit
    assert np.log2(statistics.limit) % 1 == 0


@given(EXACT)
def test_updates_in_parts_give_the_statistics_of_the_whole(parts: list[np.ndarray]) -> None:
    whole = np.concatenate(parts)
    one, many = seen(whole), seen(*parts)
    for field in ("minimum", "maximum", "limit", "count"):
        assert getattr(one, field) == getattr(many, field)
    for field in ("histogram", "channel_minimum", "channel_maximum", "channel_sum"):
        np.testing.assert_array_equal(getattr(one, field), getattr(many, field))
    edges = np.linspace(-many.limit, many.limit, BINS + 1)
    np.testing.assert_array_equal(many.histogram, np.histogram(whole, edges)[0])


@given(SHAPES, st.integers(-4, -1), st.integers(0, 99))
def test_channels_are_those_of_their_axis(shape: tuple[int, ...], axis: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.5, 2, shape).astype(np.float32)
    statistics = seen(values, axis=axis)
    others = tuple(index for index in range(4) if index != axis + 4)
    np.testing.assert_array_equal(statistics.channel_minimum, values.min(axis=others))
    np.testing.assert_array_equal(statistics.channel_maximum, values.max(axis=others))
    mean = values.mean(axis=others, dtype=np.float64)
    np.testing.assert_allclose(statistics.channel_mean, mean, rtol=1e-12, atol=1e-12)
    assert (statistics.minimum, statistics.maximum) == (values.min(), values.max())
    assert statistics.count == values.size // shape[axis]
    assert statistics.histogram.sum() == values.size


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_rows_are_at_most_128_vectors_of_the_values(lengths: list[int]) -> None:
    ends = np.cumsum(lengths)
    whole = np.arange(ends[-1] * 3, dtype=np.float32).reshape(-1, 3)
    parts = np.split(whole, ends[:-1])
    rows = seen(*parts).rows
    assert 1 <= len(rows) <= 128 and rows.shape[1] == 3
    assert len(rows) >= min(128, len(parts))
    picked = rows[:, 0].astype(int) // 3
    np.testing.assert_array_equal(rows, whole[picked])
    assert len(set(picked)) == len(picked)


def test_rows_are_copies_and_only_of_channels_in_the_last_axis() -> None:
    values = np.ones((2, 3), np.float32)
    statistics = seen(values)
    values[:] = 9
    assert (statistics.rows == 1).all()
    assert seen(values, axis=-2).rows.size == 0


def test_rows_are_from_every_call() -> None:
    calls = [np.full((100, 2), number, np.float32) for number in range(20)]
    assert set(seen(*calls).rows[:, 0]) == set(range(20))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    statistics = seen(np.ones((4, 2), np.float32))
    bad = np.zeros((4, 2), np.float32)
    bad[2, 1] = value
    with pytest.raises(InputError, match="not finite"):
        statistics.update(bad, -1)
    assert (statistics.count, statistics.minimum, statistics.histogram.sum()) == (4, 1, 8)


@given(ANY, st.sampled_from(METHODS))
def test_a_range_contains_zero_and_is_within_the_values(values: np.ndarray, method: str) -> None:
    low, high = choose_range(seen(values), method)
    assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)
    if method == "minmax":
        assert (low, high) == (min(values.min(), 0), max(values.max(), 0))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([0.001, 1, 300]), st.floats(-2, 2), st.booleans())
def test_the_least_error_is_no_worse_than_that_of_the_whole_range(
    seed: int, scale: float, shift: float, one_sided: bool
) -> None:
    values = heavy_tailed(seed) + np.float32(shift)
    values = np.float32(scale) * (np.abs(values) if one_sided else values)
    statistics = seen(values)
    error, whole = (
        quantization_error(values, *choose_range(statistics, method)) for method in ("mse", "minmax")
    )
    assert error <= 1.02 * whole  # the histogram only gives the mean error of each bin


def test_the_least_error_is_no_worse_where_nearly_all_values_are_zero() -> None:
    values = np.zeros((100_000, 1), np.float32)
    values[::100, 0] = np.random.default_rng(0).uniform(0, 1, 1000)
    error, whole = (
        quantization_error(values, *choose_range(seen(values), method)) for method in ("mse", "minmax")
    )
    assert error <= 1.02 * whole


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_outliers_are_cut_and_the_bulk_stays(method: str) -> None:
    values = np.random.default_rng(0).normal(0, 1, (1_000_000, 1)).astype(np.float32)
    values[:2, 0] = 40, -30
    statistics = seen(values)
    low, high = choose_range(statistics, method)
    assert -16 < low < -3 and 3 < high < 16
    whole = choose_range(statistics, "minmax")
    if method == "mse":
        assert quantization_error(values, low, high) < 0.5 * quantization_error(values, *whole)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(1, 100))
def test_the_percentile_cuts_half_a_hundredth_of_a_percent_on_each_side(seed: int, outlier: float) -> None:
    values = np.random.default_rng(seed).normal(0, 1, (100_000, 1)).astype(np.float32)
    values[0] *= outlier
    statistics = seen(values)
    width = 2 * statistics.limit / BINS
    low, high = choose_range(statistics, "percentile")
    ordered = np.sort(values[:, 0])
    assert ordered[4] - width <= low <= ordered[6] + width
    assert ordered[-7] - width <= high <= ordered[-5] + width


def test_the_percentile_cuts_no_more_than_its_share() -> None:
    values = np.random.default_rng(0).uniform(880, 900, (100_000, 1)).astype(np.float32)
    values[0] = 1e6
    _, high = choose_range(seen(values), "percentile")
    assert (values > high).mean() <= 1e-4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_largest_floats_are_counted_in_the_right_bins() -> None:
    statistics = seen(np.array([[3e38], [-1], [0]], np.float32))
    assert statistics.histogram[: BINS // 2 - 1].sum() == 0
    assert statistics.histogram[BINS // 2 + 1 :].sum() == 1


def test_zeros_alone_have_an_empty_range() -> None:
    for method in METHODS:
        assert choose_range(seen(np.zeros((3, 2), np.float32)), method) == (0, 0)


def test_an_unknown_method_and_no_values_are_refused() -> None:
    with pytest.raises(InputError, match="'best', but should be one of minmax, percentile, mse, entropy"):
        choose_range(seen(np.ones((1, 1), np.float32)), "best")
    for method in METHODS:
        with pytest.raises(InputError, match="no value was ever seen"):
            choose_range(TensorStatistics(), method)
