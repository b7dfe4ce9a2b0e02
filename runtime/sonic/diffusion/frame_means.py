"""Values of every frame of a clip, as means over the windows that contain it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sonic.storage.spool import ArraySpool

_ROWS_AT_ONCE = 32


class FrameMeans:
    """A row for every frame of a clip; a step replaces it by the mean over the windows with that frame.

    Args:
        row_shape: shape of a row, float32.
        spool_directory: folder of the temporary files of long clips.

    Attributes:
        rows: the rows after the last finished step.
    """

    def __init__(self, row_shape: tuple[int, ...], spool_directory: Path | None = None) -> None:
        self.rows = ArraySpool(row_shape, np.float32, directory=spool_directory)
        self._sums = ArraySpool(row_shape, np.float32, directory=spool_directory)

    def append(self, row: np.ndarray) -> None:
        """Add a frame."""
        self.rows.append(row[None])
        self._sums.append(np.zeros_like(row)[None])

    def add(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Add the values of a window's frames to this step's sums.

        The windows of a step have to be added in order, so that the sums are the same to the last bit.
        """
        frames, positions = np.unique(indices, return_inverse=True)
        sums = self._sums[frames]
        np.add.at(sums, positions, values)
        self._sums[frames] = sums

    def means(self, frames: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The means over the windows with these frames, of which there are `counts`, once all were added."""
        means: np.ndarray = self._sums[frames] / counts[:, None, None, None].astype(np.float32)
        return means

    def finish_step(self, counts: np.ndarray) -> None:
        """Replace every row by the mean over its windows, of which there are `counts`, int (frames,)."""
        for start in range(0, len(counts), _ROWS_AT_ONCE):
            frames = np.arange(start, min(start + _ROWS_AT_ONCE, len(counts)))
            means = self.means(frames, counts[frames])
            self.rows[frames] = means
            self._sums[frames] = np.zeros_like(means)
