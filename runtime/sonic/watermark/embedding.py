"""Writing a watermark into the luma of frames.

    embedder = Embedder(watermark, 512, 512)
    embedder.apply(luma)                     # in place, for every frame

The first frame decides how strong the pattern is: one level of luma where pictures are smooth, as there it
would be seen first and is read easily, and two where they are busy or small.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sonic.watermark.pattern import pattern, pitch_pixels
from sonic.watermark.payload import Watermark

# Luma of video (ITU-R BT.709): black and white.
_BLACK, _WHITE = 16, 235
_WEAK, _STRONG = 1.0, 1.5  # rounded to one level and to two, with less between cells
# Below, there are too few cells for the weak one.
_SMALL_PIXELS = 256
# A block is busy if neighbouring pixels differ by so many levels on average; a picture, if one in so many is.
_BLOCK_CELLS, _BUSY_DIFFERENCE, _ONE_BUSY_IN = 4, 2, 4


class Embedder:
    """Adds one watermark's pattern to frames of one size; integers only, so all machines give the same.

    Args:
        watermark: what to write.
        height, width: of the frames, in pixels.
    """

    def __init__(self, watermark: Watermark, height: int, width: int) -> None:
        self._number, self._shape = watermark.to_number(), (height, width)
        self._chosen = False

    def apply(self, luma: NDArray[np.uint8]) -> None:
        """Mark a frame, in place: uint8 (height, width), 16 (black) to 235 (white)."""
        if not self._chosen:
            self._choose(_STRONG if min(self._shape) < _SMALL_PIXELS or _busy(luma) else _WEAK)
        np.clip(luma, self._lowest, self._highest, out=luma)
        np.add(luma, self._levels, out=luma)

    def _choose(self, amplitude: float) -> None:
        levels = pattern(self._number, *self._shape, amplitude)
        # With these bounds, sums stay from black to white, and may be taken modulo 256.
        wide = levels.astype(np.int16)
        self._lowest = (_BLACK - np.minimum(wide, 0)).astype(np.uint8)
        self._highest = (_WHITE - np.maximum(wide, 0)).astype(np.uint8)
        self._levels = levels.view(np.uint8)
        self._chosen = True


def _busy(luma: NDArray[np.uint8]) -> bool:
    """Whether more than a quarter of a picture's blocks are busy."""
    height, width = luma.shape
    side = _BLOCK_CELLS * pitch_pixels(height, width)
    levels = luma.astype(np.int16)
    differences = np.zeros(luma.shape, np.int16)
    differences[:, 1:] += np.abs(np.diff(levels, axis=1))
    differences[1:] += np.abs(np.diff(levels, axis=0))
    rows = np.add.reduceat(differences, np.arange(0, height, side), dtype=np.int64)
    blocks = np.add.reduceat(rows, np.arange(0, width, side), axis=1)
    busy = np.count_nonzero(blocks > 2 * _BUSY_DIFFERENCE * side * side)
    return bool(busy * _ONE_BUSY_IN > blocks.size)
