"""Opening and spread of a drawn mouth, computed from clean speech."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import stft

from sonic_calibration.quality.mouth import speech_opening_of_samples

SAMPLE_RATE_HZ = 16_000
_HOP_SAMPLES = 160
_FULL_SPREAD_DB = 14.0


def opening(samples: NDArray[np.float32], frames: int, frame_rate_hz: float) -> NDArray[np.float64]:
    """How far the mouth is open, (frames,), 0..1: the opening that the quality metrics expect.

    Args:
        samples: float32 (n,), mono at 16 kHz.
        frames: number of values.
        frame_rate_hz: values per second.
    """
    return speech_opening_of_samples(samples, frames, frame_rate_hz)


def spread(samples: NDArray[np.float32], frames: int, frame_rate_hz: float) -> NDArray[np.float64]:
    """How far the lips are spread, (frames,), from -1 (rounded, as in "oo") to 1 (as in "ee").

    The level from 1.5 to 4 kHz relative to that from 0.2 to 1.5 kHz, minus its median over the speech:
    the second formant of front vowels and the energy of fricatives lie in the upper band, those of rounded
    back vowels do not.

    Args:
        samples: float32 (n,), mono at 16 kHz.
        frames: number of values.
        frame_rate_hz: values per second.
    """
    frequencies, times, spectrum = stft(
        samples, SAMPLE_RATE_HZ, nperseg=640, noverlap=640 - _HOP_SAMPLES, boundary="zeros", padded=True
    )
    power = np.abs(spectrum) ** 2
    low = power[(frequencies >= 200) & (frequencies < 1500)].sum(axis=0)
    high = power[(frequencies >= 1500) & (frequencies < 4000)].sum(axis=0)
    total = low + high
    spoken = total > 1e-3 * np.percentile(total, 95) if total.max() > 1e-10 else np.zeros(len(total), bool)
    ratio_db = 10 * np.log10((high + 1e-10) / (low + 1e-10))
    if not spoken.any():
        return np.zeros(frames)
    ratio_db = np.where(spoken, ratio_db - np.median(ratio_db[spoken]), 0.0)
    smooth = gaussian_filter1d(np.clip(ratio_db / _FULL_SPREAD_DB, -1, 1), 4)
    return np.interp(np.arange(frames) / frame_rate_hz + 0.02, times, smooth)
