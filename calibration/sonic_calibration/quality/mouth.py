"""Lip sync: how well the mouth of a talking-head video follows its sound.

Training data, drawings and metrics share one definition of how far speech opens a mouth
(`speech_opening`), and one of how far the mouth in a picture is open (`MouthOpeningMeter`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d

from sonic.errors import InputError
from sonic.media.audio import Sound, mono_samples
from sonic.media.lipsync import MOUTH_COLUMNS, MOUTH_ROWS
from sonic_calibration.quality.picture import Box, box_part, check_frame, luma_of

# Constants of `speech_opening`.
SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 640  # 40 ms, so frequency bins are 25 Hz apart
HOP_SAMPLES = 160  # 10 ms
BAND_HZ = (300, 1500)  # covers the first formants of open vowels
REFERENCE_PERCENTILE = 95
RANGE_DB = 20.0
FLOOR_DBFS = -60.0
SMOOTHING_SECONDS = 0.040
FRAME_DELAY_SECONDS = 0.020
_WINDOWS_PER_CHUNK = 1024  # limits the working memory

#: Cheeks and nose within a face box, as fractions of its width and height.
SKIN_COLUMNS = (0.15, 0.85)
SKIN_ROWS = (0.45, 0.6)
#: A `speech_opening` below this value means silence.
SILENT_OPENING = 0.02


def speech_opening(sound: Sound, frames: int, frame_rate_hz: float) -> NDArray[np.float64]:
    """How far this sound opens the mouth of its speaker in each frame.

    The sound is mixed to mono at 16 kHz (`sonic.media.audio.mono_samples`) and passed to
    `speech_opening_of_samples`, which gives the definition.

    Args:
        sound: the recording.
        frames: number of frames.
        frame_rate_hz: frames per second.

    Returns:
        float64 (frames,), from 0 (closed) to 1 (as open as in the loudest vowels of this sound).

    Raises:
        InputError: the number of frames is negative, or the frame rate is not a positive number.
    """
    return speech_opening_of_samples(mono_samples(sound, SAMPLE_RATE_HZ), frames, frame_rate_hz)


def speech_opening_of_samples(
    samples_16khz: NDArray[np.floating], frames: int, frame_rate_hz: float
) -> NDArray[np.float64]:
    """How far these samples open the mouth of their speaker in each frame.

    1. A short-time Fourier transform: a periodic Hann window of 640 samples (40 ms), centred at every
       160th sample (10 ms) starting with the first, with zero padding at both ends.
    2. p is the sum of |X|^2 over the bins from 300 to 1500 Hz (12 to 60, inclusive), divided by
       640 * 240 / 4 (240 is the sum of the squared window), so that a sine of amplitude 1 within the
       band has p = 1 (Parseval). The level is 10 log10(max(p, 1e-20)) dBFS.
    3. x = clip((level - (reference - 20)) / 20, 0, 1), where the reference is the 95th percentile of all
       levels of the sound; x is 0 where the level is below -60 dBFS.
    4. x, zero-padded at both ends, is smoothed by a Gaussian with a standard deviation of 40 ms (truncated
       at 4 deviations) and linearly interpolated at j / frame_rate_hz + 0.020 s for frame j, the middle of
       a frame at 25 Hz. It is 0 more than 160 ms beyond the ends of the sound.

    Apart from the result, it needs about 6 bytes of memory per sample.

    Args:
        samples_16khz: float (n,), mono at 16 kHz, full scale at -1 and 1.
        frames: number of frames.
        frame_rate_hz: frames per second.

    Returns:
        float64 (frames,), 0..1.

    Raises:
        InputError: the samples have another shape or are not finite, the number of frames is negative, or
            the frame rate is not a positive number.
    """
    samples = np.asarray(samples_16khz, np.float32)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise InputError(
            f"samples of shape {samples.shape} should be (n,), one finite number for each sample"
        )
    if frames < 0:
        raise InputError(f"a number of {frames} frames should be 0 or more")
    _check_rate(frame_rate_hz)
    if not len(samples):
        return np.zeros(frames)
    level = _band_level_dbfs(samples)
    reference = np.percentile(level, REFERENCE_PERCENTILE)
    opening = np.clip((level - (reference - RANGE_DB)) / RANGE_DB, 0, 1)
    opening[level < FLOOR_DBFS] = 0
    hop_seconds = HOP_SAMPLES / SAMPLE_RATE_HZ
    sigma = SMOOTHING_SECONDS / hop_seconds
    reach = round(4 * sigma)
    smooth = gaussian_filter1d(np.pad(opening, reach), sigma, mode="constant", truncate=4)
    seconds = np.arange(frames) / frame_rate_hz + FRAME_DELAY_SECONDS
    return np.interp(seconds / hop_seconds + reach, np.arange(len(smooth)), smooth, right=0)


def _band_level_dbfs(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Level of the band for every hop, (n // hop + 1,), in dBFS; a full-scale sine has 0."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES)
    full_scale = WINDOW_SAMPLES * np.square(hann).sum() / 4
    first, last = (edge * WINDOW_SAMPLES // SAMPLE_RATE_HZ for edge in BAND_HZ)
    padded = np.pad(samples, WINDOW_SAMPLES // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
    power = np.empty(len(windows))
    for start in range(0, len(windows), _WINDOWS_PER_CHUNK):
        chunk = slice(start, start + _WINDOWS_PER_CHUNK)
        spectrum = np.fft.rfft(windows[chunk] * hann)[:, first : last + 1]
        power[chunk] = (np.abs(spectrum) ** 2).sum(axis=1)
    return 10 * np.log10(np.maximum(power / full_scale, 1e-20))


class MouthOpeningMeter:
    """Measures in every frame how much of the mouth's box is dark, as the inside of an open mouth is.

    The box is that of `sonic.media.lipsync` (`MOUTH_COLUMNS`, `MOUTH_ROWS` of the face box). The opening
    is the mean over the box of clip((s - luma) / s, 0, 1), where luma is that of ITU-R BT.601 and s is its
    median over cheeks and nose (`SKIN_COLUMNS`, `SKIN_ROWS`) in the same frame: 0 for skin and 1 for
    black, regardless of skin tone and brightness. Lips and shadows add a constant, so values are only
    comparable within one video.

    Args:
        face_box: (x1, y1, x2, y2) in pixels of the frames.
    """

    def __init__(self, face_box: Box) -> None:
        self._face_box = face_box
        self._values: list[float] = []

    def update(self, frame: NDArray[np.uint8]) -> None:
        """Add the next frame, uint8 (height, width, 3).

        Raises:
            InputError: the frame has another shape or dtype, or does not show the mouth.
        """
        frame = check_frame(frame)
        height, width = frame.shape[:2]
        mouth = box_part(self._face_box, MOUTH_COLUMNS, MOUTH_ROWS, height, width, "mouth")
        cheeks = box_part(self._face_box, SKIN_COLUMNS, SKIN_ROWS, height, width, "cheeks")
        skin = max(float(np.median(luma_of(frame[cheeks]))), 1.0)  # avoids 0 / 0 in a black frame
        self._values.append(float(np.clip((skin - luma_of(frame[mouth])) / skin, 0, 1).mean()))

    @property
    def signal(self) -> NDArray[np.float64]:
        """float64 (frames,): the opening of the mouth in every frame so far, 0..1."""
        return np.asarray(self._values, np.float64)


def mouth_opening(frames: Iterable[NDArray[np.uint8]], face_box: Box) -> NDArray[np.float64]:
    """Measure how far the mouth is open in each frame with `MouthOpeningMeter`.

    Args:
        frames: uint8 (height, width, 3) each; a video, a spool, an array or a generator.
        face_box: (x1, y1, x2, y2) in pixels.

    Returns:
        float64 (frames,), 0..1.

    Raises:
        InputError: a frame has another shape or dtype, or does not show the mouth.
    """
    meter = MouthOpeningMeter(face_box)
    for frame in frames:
        meter.update(frame)
    return meter.signal


@dataclass(frozen=True)
class LipSync:
    """How well a mouth follows its sound.

    Attributes:
        correlation: Pearson's correlation at lag 0, -1..1.
        best_correlation: the largest correlation over all lags that were tried.
        lag_frames: the lag with the largest correlation; positive if the mouth is late.
        lag_seconds: the same in seconds.
    """

    correlation: float
    best_correlation: float
    lag_frames: int
    lag_seconds: float


def lip_sync(
    measured: ArrayLike,
    driven: ArrayLike,
    frame_rate_hz: float,
    maximum_lag_frames: int = 5,
) -> LipSync:
    """Correlate the measured mouth opening with the opening that the sound implies.

    r(k) is Pearson's correlation of measured[t] and driven[t - k] over all t for which both exist, for |k|
    up to `maximum_lag_frames`, or up to half the frames of a short video. Among equal correlations, the
    smallest lag is reported. A constant signal has correlation 0.

    Args:
        measured: (frames,), from `mouth_opening`.
        driven: (frames,), from `speech_opening`.
        frame_rate_hz: frames per second.
        maximum_lag_frames: the largest lag to try, 0 or more.

    Raises:
        InputError: the signals differ in length or are not finite, the maximum is negative, or the frame
            rate is not a positive number.
    """
    measured, driven = _signals(measured, driven)
    _check_rate(frame_rate_hz)
    if maximum_lag_frames < 0:
        raise InputError(f"a maximum lag of {maximum_lag_frames} frames should be 0 or more")
    count = len(measured)
    reach = min(maximum_lag_frames, count // 2)
    correlations = {
        lag: _correlation(measured[max(lag, 0) : count + lag], driven[max(-lag, 0) : count - lag])
        for lag in range(-reach, reach + 1)
    }
    # Rounded, so that rounding errors do not give a constant or periodic signal a lag.
    best = max(correlations, key=lambda lag: (round(correlations[lag], 9), -abs(lag)))
    return LipSync(correlations[0], correlations[best], best, best / frame_rate_hz)


def mouth_amplitude(measured: ArrayLike) -> float:
    """How much a mouth moves: the 95th minus the 5th percentile of its opening, 0..1.

    Raises:
        InputError: there are no frames, or a value is not finite.
    """
    low, high = _percentiles(measured)
    return high - low


def closed_in_silence(measured: ArrayLike, driven: ArrayLike) -> float | None:
    """How far open the mouth is during silence, from 0 (closed) to 1 (as open as it ever is).

    The mean of clip((measured - p5) / (p95 - p5), 0, 1) over the frames where `driven` is below 0.02; p5
    and p95 are percentiles of the measured opening over all frames.

    Args:
        measured: (frames,), from `mouth_opening`.
        driven: (frames,), from `speech_opening`.

    Returns:
        0..1, or None if speech never pauses or the mouth never moves (p95 = p5).

    Raises:
        InputError: there are no frames, the signals differ in length, or a value is not finite.
    """
    measured, driven = _signals(measured, driven)
    low, high = _percentiles(measured)
    silent = measured[driven < SILENT_OPENING]
    if not silent.size or high - low < 1e-9:
        return None
    return float(np.clip((silent - low) / (high - low), 0, 1).mean())


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's correlation; 0 if a signal is empty or, up to rounding errors, constant."""
    if not first.size:
        return 0.0
    deviations, norms = [], []
    for signal in (first, second):
        scale = float(np.abs(signal).max())
        deviation = signal / (scale or 1.0)
        deviation = deviation - deviation.mean()
        norm = float(np.linalg.norm(deviation))
        if norm <= 1e-9 * math.sqrt(len(signal)):
            return 0.0
        deviations.append(deviation)
        norms.append(norm)
    return float(np.clip(deviations[0] @ deviations[1] / (norms[0] * norms[1]), -1, 1))


def _signals(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, two = _signal(first), _signal(second)
    if one.shape != two.shape:
        raise InputError(
            f"a measured opening of {len(one)} frames and one of {len(two)} frames should have the "
            "same length"
        )
    return one, two


def _signal(values: ArrayLike) -> NDArray[np.float64]:
    signal = np.asarray(values, np.float64)
    if signal.ndim != 1 or not np.isfinite(signal).all():
        raise InputError(
            f"a mouth opening of shape {signal.shape} should be (frames,), one finite number for each"
        )
    return signal


def _percentiles(measured: ArrayLike) -> tuple[float, float]:
    """The 5th and the 95th percentile."""
    signal = _signal(measured)
    if not signal.size:
        raise InputError("there are no frames to measure; give a video with at least one")
    low, high = np.percentile(signal, (5, 95))
    return float(low), float(high)


def _check_rate(frame_rate_hz: float) -> None:
    if not 0 < frame_rate_hz < math.inf:
        raise InputError(f"a frame rate of {frame_rate_hz} Hz should be a positive number")
