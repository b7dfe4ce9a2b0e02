"""Reducing flicker in a video without losing sharpness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sonic.errors import InputError

MOTION_THRESHOLD = 0.06


class TemporalSmoother:
    """A filter over three frames that acts only where nothing moves.

    With the frames p, c, n (previous, current, next) the result for c is

        c + g (p - 2 c + n) / 4,    g = min(w(p, c), w(c, n)).

    At g = 1 this is the binomial filter (1, 2, 1) / 4. It is zero at half the frame rate, the
    frequency at which generated and interpolated frames alternate and flicker, and keeps 3/8 of the
    variance of white noise. A steady change of brightness passes unchanged, as p - 2 c + n is zero.

    The gate w is Tukey's biweight of a difference d, exactly zero at the threshold t and above:

        w = (1 - (d / t)^2)^2 where d < t, else 0,
        d^2 = max(e, mean of e over 3x3 pixels), e = mean over the channels of (difference)^2.

    A moving pixel and its neighbours thus keep exactly their values, and so do moving edges. The
    first and last frame stand in for the missing frames before and after them.

    Frames are float32 (height, width, 3) or (3, height, width) in 0..1; three are kept at a time.

    Args:
        motion_threshold: t, the difference that counts as motion, on the frames' scale of 0..1.

    Raises:
        InputError: the threshold is not in 0..1, or zero.
    """

    def __init__(self, motion_threshold: float = MOTION_THRESHOLD) -> None:
        if not 0 < motion_threshold <= 1:
            raise InputError(f"a motion threshold of {motion_threshold} should be in 0..1")
        self._inverse_square = np.float32(1 / motion_threshold**2)
        self._reset()

    def _reset(self) -> None:
        self._previous: NDArray[np.float32] | None = None
        self._current: NDArray[np.float32] | None = None
        self._gate_before: NDArray[np.float32] | None = None

    def push(self, frame: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Take the next frame and return the finished ones: none for the first frame, then one each.

        Raises:
            InputError: the frame does not have three channels, or not the shape of the previous one.
        """
        frame = np.array(frame, np.float32)
        if frame.ndim != 3 or 3 not in (frame.shape[0], frame.shape[2]):
            raise InputError(
                f"a frame of shape {frame.shape} should be (height, width, 3) or (3, height, width)"
            )
        if self._current is None:
            self._previous = self._current = frame
            return []
        if frame.shape != self._current.shape:
            raise InputError(f"a frame of shape {frame.shape} should be {self._current.shape} as before")
        gate_after = self._gate(self._current, frame)
        finished = self._filter(frame, gate_after)
        self._previous, self._current, self._gate_before = self._current, frame, gate_after
        return [finished]

    def flush(self) -> list[NDArray[np.float32]]:
        """Return the last frame, if there is one, and get ready for another video."""
        if self._current is None:
            return []
        finished = self._filter(self._current, None)
        self._reset()
        return [finished]

    def _filter(
        self, following: NDArray[np.float32], gate_after: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        assert self._current is not None and self._previous is not None
        gates = [gate for gate in (self._gate_before, gate_after) if gate is not None]
        if not gates:  # the only frame
            return self._current
        gate = np.minimum.reduce(gates)
        second_difference = self._previous - 2 * self._current + following
        smoothed: NDArray[np.float32] = self._current + gate / 4 * second_difference
        return smoothed

    def _gate(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
        """w for each pixel, with a channel axis of size 1."""
        channels = 2 if first.shape[2] == 3 else 0
        energy = np.mean((second - first) ** 2, axis=channels)
        height, width = energy.shape
        padded = np.pad(energy, 1, mode="edge")
        rows = padded[:height] + padded[1 : height + 1] + padded[2:]
        mean = (rows[:, :width] + rows[:, 1 : width + 1] + rows[:, 2:]) / 9
        square = np.maximum(energy, mean) * self._inverse_square
        return np.expand_dims(np.maximum(1 - square, 0) ** 2, channels)
