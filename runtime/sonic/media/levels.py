"""What the samples of a recording say about it: how loud it is, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

FULL_SCALE = 32_768
#: A sound counts as clipped if more than this fraction of its samples is at full scale. Recordings that are
#: merely loud touch it a few times.
CLIPPED_FRACTION = 0.005
#: Two channels count as opposed if their correlation is below this.
OPPOSED_CORRELATION = -0.9


class Levels:
    """Measures samples part by part; sums are whole numbers, so the parts' sizes do not matter.

    Args:
        channels: 1 or 2.

    Attributes:
        peak: the largest absolute value, 0 to 32768.
    """

    def __init__(self, channels: int) -> None:
        self.peak = 0
        self._channels = channels
        self._values = self._full_scale = 0
        self._left = self._right = self._product = 0

    def update(self, samples: NDArray[np.int16]) -> None:
        """Measure more samples, int16 (n, channels)."""
        if not samples.size:
            return
        high, low = int(samples.max()), int(samples.min())
        self.peak = max(self.peak, high, -low)
        self._values += samples.size
        if high == FULL_SCALE - 1 or low == -FULL_SCALE:
            full = (samples == FULL_SCALE - 1) | (samples == -FULL_SCALE)
            self._full_scale += int(np.count_nonzero(full))
        if self._channels == 2:
            left, right = samples[:, 0], samples[:, 1]
            self._left += _product(left, left)
            self._right += _product(right, right)
            self._product += _product(left, right)

    @property
    def clipped_fraction(self) -> float:
        """The part of the samples that is at full scale, 0 to 1."""
        return self._full_scale / max(self._values, 1)

    @property
    def correlation(self) -> float:
        """Of the two channels, -1 to 1 (without removing a mean); 1 if there is one, or one is silent."""
        energy = (self._left * self._right) ** 0.5
        return self._product / energy if energy else 1.0

    def notes(self) -> Iterator[str]:
        """What a user may want to know, as the rest of a sentence that starts with the file's name."""
        if self.clipped_fraction > CLIPPED_FRACTION:
            yield (
                f"is clipped: {100 * self.clipped_fraction:.1f} % of its samples are at full scale; "
                "a recording at a lower level gives better lips"
            )
        if self.correlation < OPPOSED_CORRELATION:
            yield (
                f"has two channels that cancel each other (correlation {self.correlation:.2f}), and the "
                "mouth follows their mean; give one of them"
            )


def _product(first: NDArray[np.int16], second: NDArray[np.int16]) -> int:
    """The sum of products, exactly."""
    return int(np.multiply(first, second, dtype=np.int32).sum(dtype=np.int64))
