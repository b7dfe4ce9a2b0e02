"""Where denoising windows begin in a finished video, as flicker may show there."""

from __future__ import annotations

from sonic.bundle.constants import Constants
from sonic.diffusion.plan import step_windows


def window_borders(constants: Constants, frames: int, steps: int) -> list[int]:
    """Indices of the finished frames at which a window of the last denoising step begins.

    Args:
        constants: the bundle's.
        frames: number of frames of the video.
        steps: number of denoising steps, as windows move with each.
    """
    factor = constants.video.interpolation_factor
    generated = (frames + factor - 1) // factor
    windows = step_windows(generated, steps - 1, constants.sampler)
    starts = {int(indices[0]) * factor for indices in windows}
    return sorted(start for start in starts if 0 < start < frames - 1)
