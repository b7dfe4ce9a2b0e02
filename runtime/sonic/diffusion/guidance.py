"""Classifier-free guidance over three branches: without both conditions, with the image, with both."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sonic.bundle.constants import GUIDANCE_BRANCHES


def guidance_scales(first_last: tuple[float, float], steps: int) -> np.ndarray:
    """A guidance weight for every step, linear from the first to the last: float32 (steps,)."""
    return np.linspace(*first_last, steps, dtype=np.float32)


def needed_branches(image_scale: float, audio_scale: float) -> tuple[int, ...]:
    """The guidance branches whose weight is not zero: 0 without both, 1 with the image, 2 with both."""
    weights = branch_weights(image_scale, audio_scale)
    return tuple(branch for branch, weight in enumerate(weights) if weight != 0)


def guide(predictions: Mapping[int, np.ndarray], image_scale: float, audio_scale: float) -> np.ndarray:
    """neither + image_scale (image - neither) + audio_scale (both - image), of those that are needed.

    Where a branch has no weight, the sum is the same without it.
    """
    if len(predictions) == GUIDANCE_BRANCHES:
        neither, image, both = (predictions[branch] for branch in range(GUIDANCE_BRANCHES))
        return neither + image_scale * (image - neither) + audio_scale * (both - image)
    weights = branch_weights(image_scale, audio_scale)
    parts = [np.float32(weights[branch]) * values for branch, values in predictions.items()]
    return np.sum(parts, axis=0)


def branch_weights(image_scale: float, audio_scale: float) -> tuple[float, float, float]:
    """What each branch counts in the guided sum."""
    return 1 - image_scale, image_scale - audio_scale, audio_scale
