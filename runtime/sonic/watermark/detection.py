"""Finding a watermark in the mean of a video's frames, at whatever scale and place.

The search goes over sizes of a cell, as a video may be scaled and cropped. At each, the mean picture is
averaged in cells, and what their neighbours predict is taken off; the rest is folded onto one tile, and
its correlation with the pilots, by FFT, says where the tile would start. The best places are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonic.watermark.code import CHECK_BITS, CODE_BITS, LIST_SIZE, decode, encode
from sonic.watermark.pattern import PILOTS, TILE, roles, signs
from sonic.watermark.payload import Watermark

#: How many places are decoded; with the list of the decoder, what bounds the rate of false positives.
PLACES = 32
#: An upper bound of the probability that a video without a watermark seems to have one: every word that is
#: checked passes with 2**-32.
FALSE_POSITIVE_RATE = PLACES * LIST_SIZE / 2**CHECK_BITS
# Cells along the short side: from a quarter of a picture to one with bars around it, in steps that move the
# cells at its edges by at most a sixth of a cell.
_FEWEST_CELLS, _MOST_CELLS, _STEP = 28.0, 176.0, 0.005
# Those of a video that was not cropped, which are tried first.
_WHOLE_CELLS = (120.0, 137.0)


@dataclass(frozen=True)
class Detection:
    """A watermark and how clearly it was found.

    Attributes:
        watermark: what it says.
        agreement: of the 512 code bits, the fraction that is right without the code; half of them by chance.
        deviations: correlation of the whole pattern, in standard deviations of a picture without it.
        cells: how many cells lie along the picture's short side; fewer than when written if it was cropped.
        mirrored: whether the picture was mirrored.
    """

    watermark: Watermark
    agreement: float
    deviations: float
    cells: float
    mirrored: bool


@dataclass(frozen=True)
class _Place:
    """Where the tile may start.

    Attributes:
        score: correlation with the pilots, in standard deviations.
        cells, mirrored: as of a :class:`Detection`.
        start: the place in `folded`, flat.
        folded: the sum of all tiles, (64, 64).
    """

    score: float
    cells: float
    mirrored: bool
    start: int
    folded: NDArray[np.float32]

    @property
    def tile(self) -> NDArray[np.float32]:
        """The sum of all tiles as they were written."""
        down, right = divmod(self.start, TILE)
        tile = np.roll(self.folded, (-down, -right), (0, 1))
        return tile[:, ::-1] if self.mirrored else tile


def detect(mean: NDArray[np.floating]) -> Detection | None:
    """Find a watermark.

    Args:
        mean: the mean of a video's frames, luma, (height, width), at least 32 pixels on each side.

    Returns:
        The watermark, or None; see :data:`FALSE_POSITIVE_RATE`.
    """
    integral, short = _integral(mean), min(mean.shape)
    scales = np.exp(np.arange(np.log(_FEWEST_CELLS), np.log(_MOST_CELLS), _STEP))
    likely = (scales >= _WHOLE_CELLS[0]) & (scales <= _WHOLE_CELLS[1])
    for chosen, places in ((scales[likely], PLACES // 4), (scales[~likely], PLACES - PLACES // 4)):
        found = sorted(_places(integral, short, chosen), key=lambda place: -place.score)
        for place in found[:places]:
            detection = _decode(place)
            if detection is not None:
                return detection
    return None


def _decode(place: _Place) -> Detection | None:
    tile = place.tile
    values = tile * signs()
    carriers = np.where(roles() < 0, CODE_BITS, roles())
    soft = np.bincount(carriers.ravel(), values.ravel(), CODE_BITS + 1).astype(np.float64)
    number = decode(soft[:CODE_BITS])
    watermark = None if number is None else Watermark.from_number(number)
    if number is None or watermark is None:
        return None
    sent = 1.0 - 2.0 * encode(number)
    total = float(soft[CODE_BITS] + (sent * soft[:CODE_BITS]).sum())
    return Detection(
        watermark,
        agreement=float(((soft[:CODE_BITS] > 0) == (sent > 0)).mean()),
        deviations=total / max(float(np.linalg.norm(tile)), 1e-9),
        cells=place.cells,
        mirrored=place.mirrored,
    )


def _places(integral: NDArray[np.float64], short: int, scales: NDArray[np.float64]) -> Iterator[_Place]:
    """For every scale, the best place of each phase of the cells, as it is and mirrored."""
    pilots = np.where(roles() < 0, signs(), 0)
    spectra = [np.conj(np.fft.rfft2(tile)) for tile in (pilots, pilots[:, ::-1])]
    for cells in scales:
        for tile in _tiles(integral, short / cells):
            spectrum = np.fft.rfft2(tile)
            deviation = max(float(np.linalg.norm(tile)) * np.sqrt(PILOTS) / TILE, 1e-9)
            for mirrored, pilot in enumerate(spectra):
                match = np.fft.irfft2(spectrum * pilot, s=tile.shape)
                start = int(np.argmax(match))
                yield _Place(float(match.flat[start]) / deviation, float(cells), bool(mirrored), start, tile)


def _tiles(integral: NDArray[np.float64], pitch: float) -> Iterator[NDArray[np.float32]]:
    """The picture folded onto one tile, with cells of `pitch` pixels that start at four phases."""
    halves = _averaged(_averaged(integral, pitch / 2).T, pitch / 2).T
    for down in (0, 1):
        for right in (0, 1):
            part = halves[down:, right:]
            height, width = part.shape[0] // 2, part.shape[1] // 2
            part = part[: 2 * height, : 2 * width]
            cells = (part[::2, ::2] + part[1::2, ::2] + part[::2, 1::2] + part[1::2, 1::2]) / 4
            yield _folded(_whitened(cells))


def _integral(picture: NDArray[np.floating]) -> NDArray[np.float64]:
    """The sums of all pixels above and to the left: (height + 1, width + 1)."""
    centred = np.asarray(picture, np.float64) - np.mean(picture)
    integral: NDArray[np.float64] = np.pad(centred, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return integral


def _averaged(integral: NDArray[np.float64], pitch: float) -> NDArray[np.float64]:
    """The means of rows in groups of `pitch`, which need not be a whole number, from the sums up to each."""
    last = len(integral) - 1
    edges = np.minimum(pitch * np.arange(int(last / pitch + 1e-6) + 1), last)
    row = np.minimum(edges.astype(np.int64), last - 1)
    part = (edges - row)[:, None]
    upto = integral[row] * (1 - part) + integral[row + 1] * part
    means: NDArray[np.float64] = np.diff(upto, axis=0) / pitch
    return means


def _whitened(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """What four neighbours do not predict, with less weight where a picture is busy."""
    padded = np.pad(cells, 1, mode="edge")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    rest = cells - around / 4
    busy = _box_mean(np.abs(rest)) + 1
    whitened: NDArray[np.float64] = np.clip(rest / busy, -1.5, 1.5) / busy
    return whitened


def _box_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of 5 x 5 cells around each."""
    padded = np.pad(values, 2, mode="edge")
    height, width = values.shape
    down = np.sum([padded[step : step + height] for step in range(5)], axis=0)
    mean: NDArray[np.float64] = np.mean([down[:, step : step + width] for step in range(5)], axis=0) / 5
    return mean


def _folded(cells: NDArray[np.float64]) -> NDArray[np.float32]:
    """The sum of all tiles: (64, 64)."""
    height, width = (-(-side // TILE) for side in cells.shape)
    padded = np.zeros((height * TILE, width * TILE), np.float32)
    padded[: cells.shape[0], : cells.shape[1]] = cells
    tile: NDArray[np.float32] = padded.reshape(height, TILE, width, TILE).sum((0, 2))
    return tile
