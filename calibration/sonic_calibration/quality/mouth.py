"""How good a talking-head video is: the mouth against the sound.

What is drawn, measured and trained on uses one definition of how far speech opens a mouth
(`speech_opening`), and one of how far a filmed mouth is open (`MouthOpeningMeter`).
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

# Of `speech_opening`.
SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 640  # 40 ms, so the bins of the transform are 25 Hz apart
HOP_SAMPLES = 160  # 10 ms
BAND_HZ = (300, 1500)  # the first formants of open vowels
REFERENCE_PERCENTILE = 95
RANGE_DB = 20.0
FLOOR_DBFS = -60.0
SMOOTHING_SECONDS = 0.040
FRAME_DELAY_SECONDS = 0.020
_WINDOWS_AT_A_TIME = 1024

#: Cheeks and nose within a face box, as fractions of its width and height.
SKIN_COLUMNS = (0.15, 0.85)
SKIN_ROWS = (0.45, 0.6)
#: Below this opening, `speech_opening` says that nothing is spoken.
SILENT_OPENING = 0.02


def speech_opening(sound: Sound, frames: int, frame_rate_hz: float) -> NDArray[np.float64]:
    """How far open a mouth that speaks this sound is, frame by frame.

    The mean of the channels at 16 kHz (`sonic.media.audio.mono_samples`) as in
    `speech_opening_of_samples`, which gives the definition.

    Returns:
        (frames,), 0 (closed) to 1 (as open as in the loudest vowels of this sound).

    Raises:
        InputError: a negative number of frames, or a frame rate that is no positive number.
    """
    return speech_opening_of_samples(mono_samples(sound, SAMPLE_RATE_HZ), frames, frame_rate_hz)


def speech_opening_of_samples(
    samples_16khz: NDArray[np.floating], frames: int, frame_rate_hz: float
) -> NDArray[np.float64]:
    """How far open a mouth that speaks these samples is, frame by frame.

    1. A short-time Fourier transform: a periodic Hann window of 640 samples (40 ms), centred at
       every 160th sample (10 ms) from the first on, with silence beyond both ends.
    2. p, the sum of |X|^2 over the bins from 300 to 1500 Hz (12 to 60, ends included), divided by
       640 * 240 / 4 (240 is the sum of the squared window), so that a sine of amplitude 1 within
       the band has p = 1 (Parseval); the level is 10 log10(max(p, 1e-20)) dBFS.
    3. x = clip((level - (reference - 20)) / 20, 0, 1), where the reference is the 95th percentile of
       all levels of the sound; x is 0 where the level is below -60 dBFS.
    4. x, taken as 0 beyond both ends, is smoothed by a Gaussian of 40 ms (cut off at 4 deviations)
       and interpolated linearly at j / frame_rate_hz + 0.020 s for frame j: the middle of a frame of
       25 Hz. It is 0 from 160 ms beyond the sound's ends on.

    The working memory beside the result is proportional to the samples, about 6 bytes each.

    Args:
        samples_16khz: float (n,), mono at 16 kHz, full scale at -1 and 1.
        frames: how many.
        frame_rate_hz: frames a second.

    Returns:
        (frames,), 0..1.

    Raises:
        InputError: samples of another shape or not finite, a negative number of frames, or a frame
            rate that is no positive number.
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
    """Level of the band for every hop, (n // hop + 1,), in dB; a full-scale sine has 0."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES)
    full_scale = WINDOW_SAMPLES * np.square(hann).sum() / 4
    first, last = (edge * WINDOW_SAMPLES // SAMPLE_RATE_HZ for edge in BAND_HZ)
    padded = np.pad(samples, WINDOW_SAMPLES // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
    power = np.empty(len(windows))
    for start in range(0, len(windows), _WINDOWS_AT_A_TIME):
        part = slice(start, start + _WINDOWS_AT_A_TIME)
        spectrum = np.fft.rfft(windows[part] * hann)[:, first : last + 1]
        power[part] = (np.abs(spectrum) ** 2).sum(axis=1)
    return 10 * np.log10(np.maximum(power / full_scale, 1e-20))


class MouthOpeningMeter:
    """Measures frame by frame how much of the mouth's box is dark, the inside of an open mouth.

    The box is that of `sonic.media.lipsync` (`MOUTH_COLUMNS`, `MOUTH_ROWS` of the face box). With the luma
    of ITU-R BT.601 and s, the median luma of a band over cheeks and nose (`SKIN_COLUMNS`,
    `SKIN_ROWS`) in the same frame, the opening is the mean of clip((s - luma) / s, 0, 1) over the
    box: 0 for bare skin, 1 for a black box, whatever the skin's tone and the light's strength. Lips
    and shadows add a constant, so compare it within one video only.

    Args:
        face_box: (x1, y1, x2, y2) in pixels of the frames.
    """

    def __init__(self, face_box: Box) -> None:
        self._face_box = face_box
        self._values: list[float] = []

    def update(self, frame: NDArray[np.uint8]) -> None:
        """Take the next frame, uint8 (height, width, 3).

        Raises:
            InputError: the frame has another shape or dtype, or does not show the mouth.
        """
        frame = check_frame(frame)
        height, width = frame.shape[:2]
        mouth = box_part(self._face_box, MOUTH_COLUMNS, MOUTH_ROWS, height, width, "mouth")
        cheeks = box_part(self._face_box, SKIN_COLUMNS, SKIN_ROWS, height, width, "cheeks")
        skin = max(float(np.median(luma_of(frame[cheeks]))), 1.0)  # a black frame has no mouth
        self._values.append(float(np.clip((skin - luma_of(frame[mouth])) / skin, 0, 1).mean()))

    @property
    def signal(self) -> NDArray[np.float64]:
        """(frames,): the opening, 0..1."""
        return np.asarray(self._values, np.float64)


def mouth_opening(frames: Iterable[NDArray[np.uint8]], face_box: Box) -> NDArray[np.float64]:
    """How far the mouth of each frame is open: `MouthOpeningMeter` over all frames.

    Args:
        frames: uint8 (height, width, 3) each; a video, a spool, an array or a generator.
        face_box: (x1, y1, x2, y2) in pixels.

    Returns:
        (frames,), 0..1.
    """
    meter = MouthOpeningMeter(face_box)
    for frame in frames:
        meter.update(frame)
    return meter.signal


@dataclass(frozen=True)
class LipSync:
    """How well a mouth follows its sound.

    Attributes:
        correlation: Pearson's, as it is, -1..1.
        best_correlation: the largest over all lags that were tried.
        lag_frames: the lag where it is largest; positive where the mouth is late.
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
    """Correlate a measured mouth opening with the one that the sound asks for.

    r(k) is Pearson's correlation of measured[t] with driven[t - k] over all t for which both exist,
    for |k| up to `maximum_lag_frames`, or up to half the frames in a short video. Of equal
    correlations the smallest lag wins. A signal that does not change has correlation 0.

    Args:
        measured: (frames,), from `mouth_opening`.
        driven: (frames,), from `speech_opening`.
        frame_rate_hz: frames a second.
        maximum_lag_frames: 0 or more.

    Raises:
        InputError: signals of different lengths or with numbers that are not finite, a negative
            maximum, or a frame rate that is no positive number.
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
    # Rounded, so that a constant or periodic signal has no lag by the last bits of its sums.
    best = max(correlations, key=lambda lag: (round(correlations[lag], 9), -abs(lag)))
    return LipSync(correlations[0], correlations[best], best, best / frame_rate_hz)


def mouth_amplitude(measured: ArrayLike) -> float:
    """How much a mouth moves: the 95th minus the 5th percentile of its opening, 0..1.

    Raises:
        InputError: no frames, or numbers that are not finite.
    """
    low, high = _range(measured)
    return high - low


def closed_in_silence(measured: ArrayLike, driven: ArrayLike) -> float | None:
    """How far open the mouth is where nothing is spoken: 0 closed, 1 as open as it ever gets.

    The mean of clip((measured - p5) / (p95 - p5), 0, 1), where p5 and p95 are percentiles of the
    measured opening over all frames, over the frames where `driven` is below 0.02.

    Returns:
        0..1, or None where speech never stops or the mouth never moves (p95 = p5).

    Raises:
        InputError: no frames, signals of different lengths or numbers that are not finite.
    """
    measured, driven = _signals(measured, driven)
    low, high = _range(measured)
    silent = measured[driven < SILENT_OPENING]
    if not silent.size or high - low < 1e-9:
        return None
    return float(np.clip((silent - low) / (high - low), 0, 1).mean())


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's correlation; 0 where either is constant, but for rounding errors, or empty."""
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
            f"a measured opening of {len(one)} frames and one of {len(two)} frames should be of the "
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


def _range(measured: ArrayLike) -> tuple[float, float]:
    """The 5th and the 95th percentile."""
    signal = _signal(measured)
    if not signal.size:
        raise InputError("there are no frames to measure; give a video with at least one")
    low, high = np.percentile(signal, (5, 95))
    return float(low), float(high)


def _check_rate(frame_rate_hz: float) -> None:
    if not 0 < frame_rate_hz < math.inf:
        raise InputError(f"a frame rate of {frame_rate_hz} Hz should be a positive number")
