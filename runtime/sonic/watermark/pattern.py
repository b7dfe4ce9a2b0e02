"""The pattern that carries a codeword: a keyed tile of 64 x 64 cells, repeated over the picture.

Each cell is lighter or darker by one or two levels. 512 cells of a tile are pilots, the same in every video,
which tell where the tiles are; the others carry the 512 code bits, seven cells each. Every frame has the same
pattern, so that nothing depends on where a clip starts, on its frame rate or on what was cut out of it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonic.watermark.code import CODE_BITS, encode

#: Cells along each side of a tile.
TILE = 64
PILOTS = 512
_CELLS_ALONG_SHORT_SIDE = 128
_SMALLEST_PITCH_PIXELS = 2
_KEY = b"sonic watermark 1 "
# The part of a cell over which it goes over into the next one.
_RAMP = 0.5


def pitch_pixels(height: int, width: int) -> int:
    """The side of a cell: 4 pixels at 512; two at least."""
    short = min(height, width)
    rounded = (2 * short + _CELLS_ALONG_SHORT_SIDE) // (2 * _CELLS_ALONG_SHORT_SIDE)
    return max(_SMALLEST_PITCH_PIXELS, rounded)


@cache
def roles() -> NDArray[np.int64]:
    """The code bit that each cell of a tile carries, or -1 for pilots: (64, 64)."""
    # A stable sort of hashed numbers: NumPy may change its own permutations from version to version.
    order = np.argsort(_words(b"places", TILE * TILE), kind="stable")
    found = np.full(TILE * TILE, -1)
    found[order[PILOTS:]] = np.arange(TILE * TILE - PILOTS) % CODE_BITS
    return found.reshape(TILE, TILE)


@cache
def signs() -> NDArray[np.int64]:
    """Whether a 0 makes each cell of a tile lighter (1) or darker (-1): (64, 64)."""
    return (1 - 2 * (_words(b"signs", TILE * TILE) & np.uint64(1)).astype(np.int64)).reshape(TILE, TILE)


def pattern(message: int, height: int, width: int, amplitude: float) -> NDArray[np.int8]:
    """What is added to the luma of every frame of a video: (height, width), a few levels.

    Args:
        message: 64 bits.
        height, width: of the frames, in pixels.
        amplitude: in levels, before rounding.
    """
    bits = 1 - 2 * encode(message).astype(np.int64)
    tile = signs() * np.where(roles() < 0, 1, bits[roles()])
    pitch = pitch_pixels(height, width)
    levels = _spread(_spread(tile, height, pitch).T, width, pitch).T * amplitude
    # Half a level is rounded up; in cells of two pixels, which have no ramps, only in every other pixel.
    half = np.full(levels.shape, 0.5)
    if pitch == _SMALLEST_PITCH_PIXELS:
        half -= 0.25 * (np.add.outer(np.arange(height), np.arange(width)) % 2)
    rounded: NDArray[np.int8] = (np.sign(levels) * np.floor(np.abs(levels) + half)).astype(np.int8)
    return rounded


def _spread(cells: NDArray[Any], length: int, pitch: int) -> NDArray[np.float64]:
    """Repeat rows of cells over `length` rows of pixels, with ramps between them."""
    place = (np.arange(length) + 0.5) / pitch
    cell = np.floor(place).astype(np.int64)
    within, ramp = place - cell, _RAMP / 2
    before = np.maximum(ramp - within, 0) / _RAMP
    after = np.maximum(within + ramp - 1, 0) / _RAMP
    previous, current, following = (cells[(cell + step) % len(cells)] for step in (-1, 0, 1))
    at = before[:, None], (1 - before - after)[:, None], after[:, None]
    spread: NDArray[np.float64] = at[0] * previous + at[1] * current + at[2] * following
    return spread


def _words(label: bytes, count: int) -> NDArray[np.uint64]:
    return np.frombuffer(hashlib.shake_256(_KEY + label).digest(8 * count), "<u8")
