"""Measuring whether mouth and sound are in sync, and shifting the sound slightly where they are not."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sonic.errors import InputError
from sonic.media.audio import Sound

# Where the mouth is in a face box, as fractions of its width and height. Face detectors' boxes extend
# from the hairline to the chin, and the mouth is about three quarters of the way down.
MOUTH_COLUMNS = (0.25, 0.75)
MOUTH_ROWS = (0.6, 0.95)

MINIMUM_CORRELATION = 0.2
MINIMUM_Z_SCORE = 3.0


class MouthMotionMeter:
    """Measures frame by frame how much the picture changes at the mouth.

    Args:
        face_box: (x1, y1, x2, y2) in pixels of the frames.

    Raises:
        InputError: the box is empty or not finite.
    """

    def __init__(self, face_box: tuple[float, float, float, float]) -> None:
        x1, y1, x2, y2 = (float(value) for value in face_box)
        if not (math.isfinite(x1 + y1 + x2 + y2) and x2 > x1 and y2 > y1):
            raise InputError(
                f"a face box of {tuple(face_box)} should be (x1, y1, x2, y2) with x1 < x2, y1 < y2"
            )
        left, right = (x1 + part * (x2 - x1) for part in MOUTH_COLUMNS)
        top, bottom = (y1 + part * (y2 - y1) for part in MOUTH_ROWS)
        self._columns = slice(max(math.floor(left), 0), max(math.ceil(right), 0))
        self._rows = slice(max(math.floor(top), 0), max(math.ceil(bottom), 0))
        self._previous: NDArray[np.int16] | None = None
        self._values: list[float] = []

    def update(self, frame: NDArray[np.uint8]) -> None:
        """Take the next frame, uint8 (height, width, 3).

        Raises:
            InputError: the mouth is outside the frame.
        """
        mouth = np.asarray(frame)[self._rows, self._columns].astype(np.int16)
        if mouth.size == 0:
            raise InputError(
                f"a frame of shape {np.shape(frame)} does not show rows {self._rows.start} to "
                f"{self._rows.stop} and columns {self._columns.start} to {self._columns.stop}, "
                "where the face box puts the mouth"
            )
        previous = mouth if self._previous is None else self._previous
        self._values.append(float(np.abs(mouth - previous).mean()))
        self._previous = mouth

    @property
    def signal(self) -> NDArray[np.float64]:
        """Mean absolute difference from the previous frame, float64 (frames,) in 0..255; the first is 0."""
        return np.asarray(self._values, np.float64)


def speech_energy_change(sound: Sound, frames: int, frame_rate_hz: float) -> NDArray[np.float64]:
    """The absolute change in loudness from frame to frame, float64 (frames,); the first is 0.

    A frame's loudness is the mean power of its samples (full scale is 1, with silence after the end)
    raised to the power of 0.3 (Stevens, "The measurement of loudness", 1955), so that quiet
    syllables count as well as loud ones.
    """
    edges = np.rint(np.arange(frames + 1) * (sound.sample_rate_hz / frame_rate_hz)).astype(int)
    power = np.zeros(frames)
    for index, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        samples = sound.samples[start:stop].astype(np.float32) / 32768
        if samples.size:
            power[index] = np.square(samples).mean()
    loudness = power**0.3
    return np.abs(np.diff(loudness, prepend=loudness[:1]))


def sound_offset_frames(
    mouth_motion: NDArray[np.floating],
    sound: Sound,
    frame_rate_hz: float,
    maximum_frames: int = 2,
) -> int:
    """By how many frames the mouth lags behind the sound: what `shift_sound` needs to correct it.

    r(k) is Pearson's correlation of the mouth's motion with the change of speech energy
    (`speech_energy_change`) k frames earlier, over the same frames of motion for every k from
    -(maximum_frames + 1) to maximum_frames + 1. The result is the k with the largest r, but 0 if

    - r(k) is below 0.2,
    - k is beyond maximum_frames, as the true offset is then out of range,
    - r(k) does not exceed r(0) with a z-score of at least 3 in the test of Meng, Rosenthal and
      Rubin, "Comparing correlated correlation coefficients" (1992), equation 1,
    - either signal is constant, or fewer than 10 frames can be compared.

    Args:
        mouth_motion: (frames,), from `MouthMotionMeter.signal`.
        sound: the sound that starts with the first frame.
        frame_rate_hz: frames per second.
        maximum_frames: the largest offset to return, in frames.

    Raises:
        InputError: the motion is not one finite number per frame, or `maximum_frames` is negative.
    """
    motion = np.asarray(mouth_motion, np.float64)
    if motion.ndim != 1 or not np.isfinite(motion).all() or maximum_frames < 0:
        raise InputError(
            f"mouth motion of shape {motion.shape} should be one finite number for each frame, "
            f"and the maximum of {maximum_frames} frames should be 0 or more"
        )
    reach = maximum_frames + 1
    compared = len(motion) - 2 * reach
    if compared < 10:
        return 0
    change = speech_energy_change(sound, len(motion), frame_rate_hz)
    motion = motion[reach : reach + compared]
    lags = range(-reach, reach + 1)
    shifted = {lag: change[reach - lag : reach - lag + compared] for lag in lags}
    correlations = {lag: _correlation(motion, shifted[lag]) for lag in lags}
    best = max(lags, key=lambda lag: (correlations[lag], -abs(lag)))
    if best == 0 or abs(best) > maximum_frames or correlations[best] < MINIMUM_CORRELATION:
        return 0
    between = _correlation(shifted[best], shifted[0])
    z_score = _difference_z_score(correlations[best], correlations[0], between, compared)
    return best if z_score >= MINIMUM_Z_SCORE else 0


def shift_sound(sound: Sound, frames: int, frame_rate_hz: float) -> Sound:
    """Delay a sound by `frames` video frames (advance it if negative) without changing its length.

    The gap is filled with silence, and what moves past the other end is cut off.
    """
    shift = round(frames / frame_rate_hz * sound.sample_rate_hz)
    if shift == 0:
        return sound
    length = len(sound.samples)
    shift = max(-length, min(shift, length))
    samples = np.zeros_like(sound.samples)
    if shift > 0:
        samples[shift:] = sound.samples[: length - shift]
    else:
        samples[: length + shift] = sound.samples[-shift:]
    return Sound(samples, sound.sample_rate_hz)


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's correlation; 0 where either is constant."""
    first, second = first - first.mean(), second - second.mean()
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norm if norm > 1e-12 else 0.0


def _difference_z_score(first: float, second: float, between: float, count: int) -> float:
    """z-score of first - second: two signals' correlations with a third, `between` that of the two."""
    mean_square = min((first**2 + second**2) / 2, 1 - 1e-9)
    f = min((1 - between) / (2 * (1 - mean_square)), 1.0)
    h = (1 - f * mean_square) / (1 - mean_square)
    bound = 1 - 1e-9  # arctanh is infinite at 1
    difference = math.atanh(min(first, bound)) - math.atanh(max(min(second, bound), -bound))
    return difference * math.sqrt((count - 3) / max(2 * (1 - between) * h, 1e-9))
