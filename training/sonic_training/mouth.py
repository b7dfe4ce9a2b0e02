"""How a drawn mouth follows clean speech."""

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
    """(frames,) in 0..1: the opening that the quality metrics expect of this speech."""
    return speech_opening_of_samples(samples, frames, frame_rate_hz)


def spread(samples: NDArray[np.float32], frames: int, frame_rate_hz: float) -> NDArray[np.float64]:
    """How far the lips are spread, (frames,) from -1 (rounded, as for "oo") to 1 (as for "ee").

    The level of 1.5 to 4 kHz over that of 0.2 to 1.5 kHz, against its own median in the speech:
    front vowels and fricatives have their second formant there, rounded back vowels have not.

    Args:
        samples: (n,) mono at 16 kHz.
        frames: how many values.
        frame_rate_hz: values a second.
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
