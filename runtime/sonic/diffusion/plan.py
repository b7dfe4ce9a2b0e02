"""What denoising a clip will do, as data."""

from __future__ import annotations

import numpy as np

from sonic.bundle.constants import SamplerConstants


def window_indices(frames: int, step: int, constants: SamplerConstants) -> list[np.ndarray]:
    """The frames of every window at a step: int arrays of length `window_frames`, modulo `frames`."""
    stride = constants.window_frames - constants.window_overlap_frames
    shift = step * constants.window_shift_frames
    offsets = np.arange(constants.window_frames)
    return [(start - shift + offsets) % frames for start in range(0, frames, stride)]
