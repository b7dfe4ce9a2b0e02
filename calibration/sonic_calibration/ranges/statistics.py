"""Statistics of a tensor's values, and the quantization range chosen from them.

Example:

    statistics = TensorStatistics()
    statistics.update(array, channel_axis=-1)
    low, high = choose_range(statistics, "mse")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sonic.errors import InputError

BINS = 2048
PERCENTILE = 99.99
_LEVELS = 256  # of an 8-bit integer
_SMALLEST_LIMIT = 2.0**-20
_MAXIMUM_ROWS = 128
_ROWS_PER_CALL = 16
_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass
class TensorStatistics:
    """Running statistics of all values that a tensor took during calibration.

    The histogram covers [-limit, limit), where the limit is a power of two. When a value exceeds it, the
    limit doubles and pairs of bins are merged, so one pass over the values is enough.

    Attributes:
        minimum, maximum: of all values.
        limit: half the histogram's width; 0 before the first value.
        histogram: (BINS,) int64.
        count: number of values per channel.
        channel_minimum, channel_maximum: (channels,) float32, of each channel.
        channel_sum: (channels,) float64.
        zeros: number of values that are exactly zero.
        rows: (at most 128, channels) float32, an even sample of the channel vectors of all calls; empty
            for tensors whose channel axis is not the last one.
        row_numbers: (at most 128,) int64, the indices of `rows` among all candidates.
        offered: number of candidates for `rows` so far.
    """

    minimum: float = np.inf
    maximum: float = -np.inf
    limit: float = 0.0
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    count: int = 0
    channel_minimum: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    channel_maximum: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    channel_sum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    zeros: int = 0
    rows: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    row_numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    offered: int = 0

    @property
    def channel_mean(self) -> NDArray[np.float64]:
        """(channels,) float64, the mean of each channel."""
        return self.channel_sum / max(self.count, 1)

    def update(self, values: NDArray[np.float32], channel_axis: int) -> None:
        """Add the values of one call.

        Args:
            values: float32, any shape.
            channel_axis: the channel axis, counted from the end (negative).

        Raises:
            InputError: some values are not finite; the statistics are then unchanged.
        """
        by_channel = np.moveaxis(values, channel_axis, -1).reshape(-1, values.shape[channel_axis])
        low, high = by_channel.min(axis=0), by_channel.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InputError("values that are not finite")
        self.minimum = min(self.minimum, float(low.min()))
        self.maximum = max(self.maximum, float(high.max()))
        self._widen(max(-self.minimum, self.maximum))
        # Twice the largest limits overflows float32.
        shifted = by_channel.astype(np.float64) if self.limit > 1e37 else by_channel
        scaled = (shifted + self.limit) * (BINS / (2 * self.limit))
        bins = np.clip(scaled.astype(np.int32), 0, BINS - 1).ravel()
        self.histogram += np.bincount(bins, minlength=BINS)
        if not self.count:
            self.channel_minimum, self.channel_maximum = low, high
            self.channel_sum = np.zeros(len(low))
        self.channel_minimum = np.minimum(self.channel_minimum, low)
        self.channel_maximum = np.maximum(self.channel_maximum, high)
        self.channel_sum += by_channel.sum(axis=0, dtype=np.float64)
        self.count += len(by_channel)
        self.zeros += int(by_channel.size - np.count_nonzero(by_channel))
        if channel_axis == -1:
            self._sample_rows(by_channel[:: -(-len(by_channel) // _ROWS_PER_CALL)])

    def _sample_rows(self, candidates: NDArray[np.float32]) -> None:
        """Keep an even sample of all candidates so far.

        Multiples of the golden ratio modulo 1 are evenly spread, so the candidates whose multiples are
        smallest are an even sample, whatever their number.
        """
        numbers = np.concatenate([self.row_numbers, self.offered + np.arange(len(candidates))])
        rows = np.concatenate([self.rows, candidates]) if len(self.rows) else candidates
        chosen = np.sort(np.argsort(numbers * _GOLDEN_RATIO % 1, kind="stable")[:_MAXIMUM_ROWS])
        self.rows, self.row_numbers = rows[chosen].copy(), numbers[chosen]
        self.offered += len(candidates)

    def _widen(self, largest: float) -> None:
        """Double the limit until the largest magnitude is inside."""
        if self.limit == 0:
            self.limit = _SMALLEST_LIMIT
            while self.limit <= largest:
                self.limit *= 2
            return
        while self.limit <= largest:
            pairs = self.histogram.reshape(-1, 2).sum(axis=1)
            self.histogram = np.zeros(BINS, np.int64)
            self.histogram[BINS // 4 : 3 * BINS // 4] = pairs
            self.limit *= 2


def _minmax(statistics: TensorStatistics, centres: NDArray[np.float64]) -> tuple[float, float]:
    """The range of all values."""
    return statistics.minimum, statistics.maximum


def _percentile(statistics: TensorStatistics, centres: NDArray[np.float64]) -> tuple[float, float]:
    """The range of all values but the outermost 0.01 %, half of which is cut on each side."""
    shares = np.cumsum(statistics.histogram) / statistics.histogram.sum()
    tail = (1 - PERCENTILE / 100) / 2
    half = (centres[1] - centres[0]) / 2
    low = centres[int(np.searchsorted(shares, tail))] - half
    high = centres[min(int(np.searchsorted(shares, 1 - tail)), BINS - 1)] + half
    return max(float(low), statistics.minimum), min(float(high), statistics.maximum)


def _candidates(statistics: TensorStatistics) -> list[tuple[float, float]]:
    """The range of all values, scaled by factors from 1 to 0.2."""
    return [(statistics.minimum * share, statistics.maximum * share) for share in np.linspace(1.0, 0.2, 33)]


def _mse(statistics: TensorStatistics, centres: NDArray[np.float64]) -> tuple[float, float]:
    """The candidate with the smallest mean squared error of rounding and clipping."""
    weights = statistics.histogram.copy()
    weights[BINS // 2] -= statistics.zeros  # zero is represented exactly

    def error(ends: tuple[float, float]) -> float:
        low, high = min(ends[0], 0.0), max(ends[1], 0.0)
        step = (high - low) / (_LEVELS - 1)
        outside = np.maximum(np.maximum(low - centres, centres - high), 0)
        # The mean squared error of rounding is step^2 / 12; a clipped value's error is its distance.
        return float((weights * np.where(outside > 0, outside**2, step**2 / 12)).sum())

    return min(_candidates(statistics), key=error)


def _entropy(statistics: TensorStatistics, centres: NDArray[np.float64]) -> tuple[float, float]:
    """The candidate whose quantized histogram has the smallest KL divergence from the histogram.

    As in TensorRT's calibration (Migacz, "8-bit inference with TensorRT", 2017): clipped values are
    counted in the outermost bins, and each level's count is spread evenly over its non-empty bins.
    """
    histogram = statistics.histogram.astype(float)

    def divergence(ends: tuple[float, float]) -> float:
        inside = np.flatnonzero((centres >= ends[0]) & (centres <= ends[1]))
        if len(inside) < _LEVELS // 2:
            return np.inf
        first, last = inside[0], inside[-1] + 1
        kept = histogram[first:last].copy()
        clipped = kept.copy()
        clipped[0] += histogram[:first].sum()
        clipped[-1] += histogram[last:].sum()
        level = np.minimum(np.arange(len(kept)) * _LEVELS // len(kept), _LEVELS - 1)
        filled = kept > 0
        sums = np.bincount(level, kept, _LEVELS)
        counts = np.bincount(level, filled, _LEVELS)
        spread = np.where(filled, (sums / np.maximum(counts, 1))[level], 0)
        p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1)
        known = (p > 0) & (q > 0)
        lost = p[(p > 0) & (q == 0)].sum()
        return float((p[known] * np.log(p[known] / q[known])).sum() + 10 * lost)

    return min(_candidates(statistics), key=divergence)


_METHODS: dict[str, Callable[[TensorStatistics, NDArray[np.float64]], tuple[float, float]]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
METHODS = tuple(_METHODS)


def choose_range(statistics: TensorStatistics, method: str) -> tuple[float, float]:
    """Choose the range that 8-bit integers should cover.

    Args:
        statistics: of the tensor, with at least one value.
        method: "minmax" (all values), "percentile" (all but 0.01 %), "mse" (smallest mean squared error)
            or "entropy" (smallest KL divergence); one of `METHODS`.

    Returns:
        low <= 0 and high >= 0, as zero has to be representable exactly.

    Raises:
        InputError: the method is unknown, or the statistics are empty.
    """
    if method not in _METHODS:
        raise InputError(f"the method is {method!r}, but should be one of {', '.join(METHODS)}")
    if not statistics.count:
        raise InputError("no value was ever seen")
    width = 2 * statistics.limit / BINS
    centres = np.asarray((np.arange(BINS) + 0.5) * width - statistics.limit, np.float64)
    low, high = _METHODS[method](statistics, centres)
    return min(low, 0.0), max(high, 0.0)
