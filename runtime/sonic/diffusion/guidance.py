"""Classifier-free guidance with three branches, and how their predictions are combined.

Branch 0 is conditioned on neither image nor audio, branch 1 on the image, branch 2 on both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sonic.bundle.constants import GUIDANCE_BRANCHES

BRANCH_NAMES = ("unconditional", "image", "image and audio")


def guidance_scales(first_last: tuple[float, float], steps: int) -> np.ndarray:
    """The guidance scale of every step, linear from the first to the last: float32 (steps,)."""
    return np.linspace(*first_last, steps, dtype=np.float32)


def branch_weights(image_scale: float, audio_scale: float) -> tuple[float, float, float]:
    """The weight of each branch in the guided sum; the weights add up to 1."""
    return 1 - image_scale, image_scale - audio_scale, audio_scale


def needed_branches(image_scale: float, audio_scale: float) -> tuple[int, ...]:
    """The branches whose weight is not zero."""
    weights = branch_weights(image_scale, audio_scale)
    return tuple(branch for branch, weight in enumerate(weights) if weight != 0)


def guide(
    predictions: Mapping[int, np.ndarray],
    image_scale: float,
    audio_scale: float,
    image_difference: np.ndarray | None = None,
    audio_difference: np.ndarray | None = None,
) -> np.ndarray:
    """Compute neither + image_scale (image - neither) + audio_scale (both - image).

    This is both + (audio_scale - 1) (both - image) + (image_scale - 1) (image - neither). Where the branches
    of a difference were not evaluated, a given one takes its place, or it is left out. A branch whose weight
    is zero may be missing in any case: the sum is the same without it.

    Args:
        predictions: the UNet's predictions by branch; float32 arrays of the same shape.
        image_scale, audio_scale: the step's guidance scales.
        image_difference, audio_difference: what takes the place of (image - neither) and (both - image) where
            they were not evaluated.
    """
    if len(predictions) == GUIDANCE_BRANCHES:
        neither, image, both = (predictions[branch] for branch in range(GUIDANCE_BRANCHES))
        scales = np.float32(image_scale), np.float32(audio_scale)
        guided: np.ndarray = neither + scales[0] * (image - neither) + scales[1] * (both - image)
        return guided
    if set(predictions) >= set(needed_branches(image_scale, audio_scale)):
        weights = branch_weights(image_scale, audio_scale)
        parts = [np.float32(weights[branch]) * values for branch, values in predictions.items()]
        total: np.ndarray = np.sum(parts, axis=0)
        return total
    guided = predictions[2]
    evaluated_image, evaluated_audio = differences(predictions)
    for scale, difference in (
        (audio_scale, audio_difference if evaluated_audio is None else evaluated_audio),
        (image_scale, image_difference if evaluated_image is None else evaluated_image),
    ):
        if difference is not None and scale != 1:
            guided = guided + np.float32(scale - 1) * difference
    return guided


def differences(predictions: Mapping[int, np.ndarray]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(image - neither) and (both - image); None where a branch was not evaluated."""
    image = predictions[1] - predictions[0] if {0, 1} <= set(predictions) else None
    audio = predictions[2] - predictions[1] if {1, 2} <= set(predictions) else None
    return image, audio
