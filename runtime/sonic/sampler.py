"""Denoising a clip in ring windows with three guidance branches.

At step s every window starts ``s * window_shift_frames`` frames earlier and frame indices wrap around
the clip, so that no frame stays at a window's border; where windows overlap (and in clips shorter than
a window, whose frames appear more than once) the results are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sonic.constants import SamplerConstants
from sonic.engine import Session
from sonic.errors import BundleError
from sonic.schedule import euler_step, guidance_scales, input_scale, karras_sigmas, model_timestep
from sonic.spool import ArraySpool


@dataclass(frozen=True)
class ClipCondition:
    """What the UNet is told about a clip.

    Attributes:
        reference_latent: (4, h, w) float32, the VAE's unscaled mode of the portrait.
        image_embedding: (width,) float32.
        audio_tokens: (frames, tokens, width) float32.
        unconditional_tokens: (tokens, width) float32.
        buckets: (frames, 2) float32, scaled motion buckets.
        masks: the face mask at every level, (1, 1, h_level, w_level) float32, finest first.
    """

    reference_latent: np.ndarray
    image_embedding: np.ndarray
    audio_tokens: ArraySpool | np.ndarray
    unconditional_tokens: np.ndarray
    buckets: np.ndarray
    masks: Sequence[np.ndarray]


def window_indices(frames: int, step: int, constants: SamplerConstants) -> list[np.ndarray]:
    """The frames of every window at a step: int arrays of length `window_frames`, modulo `frames`."""
    stride = constants.window_frames - constants.window_overlap_frames
    shift = step * constants.window_shift_frames
    offsets = np.arange(constants.window_frames)
    return [(start - shift + offsets) % frames for start in range(0, frames, stride)]


def denoise(
    noise: np.ndarray,
    condition: ClipCondition,
    unet: Session,
    steps: int,
    constants: SamplerConstants,
    advance: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Sample a clip's latents.

    Args:
        noise: (frames, 4, h, w) float32, standard normal.
        condition: what the clip shows and says.
        unet: the open UNet.
        steps: denoising steps, at least 1.
        constants: sigmas, guidance and windows of the bundle.
        advance: called after every window of every step.

    Returns:
        (frames, 4, h, w) float32, scaled latents.

    Raises:
        BundleError: the UNet returned values that are not finite.
    """
    frames = len(noise)
    sigmas = karras_sigmas(steps, constants)
    image_scales = guidance_scales(constants.image_guidance, steps)
    audio_scales = guidance_scales(constants.audio_guidance, steps)
    latents = noise * sigmas[0] + condition.reference_latent * np.float32(
        constants.initial_latent_scale
    )
    for step in range(steps):
        sigma, next_sigma = float(sigmas[step]), float(sigmas[step + 1])
        total = np.zeros_like(latents)
        counts = np.zeros((frames, 1, 1, 1), np.float32)
        for window, indices in enumerate(window_indices(frames, step, constants)):
            inputs = window_inputs(latents[indices], indices, sigma, condition, constants)
            prediction = unet.run(inputs, step=step, sigma=sigma, window=window)["prediction"]
            if not np.isfinite(prediction).all():
                raise BundleError(
                    f"the UNet returned values that are not finite at step {step + 1} of {steps}; "
                    "the bundle's weights or precision cannot be right: run 'sonic-convert parity'"
                )
            neither, image, audio = prediction
            guided = (
                neither
                + image_scales[step] * (image - neither)
                + audio_scales[step] * (audio - image)
            )
            stepped = euler_step(latents[indices], guided, sigma, next_sigma)
            np.add.at(total, indices, stepped)
            np.add.at(counts, indices, 1)
            advance()
        latents = total / counts
    return latents


def window_inputs(
    latents: np.ndarray,
    indices: np.ndarray,
    sigma: float,
    condition: ClipCondition,
    constants: SamplerConstants,
) -> dict[str, np.ndarray]:
    """The UNet's inputs for one window; branches: (no image, no audio), (image, none), (image, audio)."""
    frames = len(indices)
    noisy = latents * np.float32(input_scale(sigma))
    reference = np.broadcast_to(condition.reference_latent, latents.shape)
    with_image = np.concatenate([noisy, reference], axis=1)
    without_image = np.concatenate([noisy, np.zeros_like(reference)], axis=1)
    silent = np.broadcast_to(
        condition.unconditional_tokens, (frames, *condition.unconditional_tokens.shape)
    )
    embedding = condition.image_embedding
    buckets = condition.buckets[indices].mean(axis=0)
    time_ids = np.array([constants.frame_rate_id, *buckets], np.float32)
    return {
        "sample": np.stack([without_image, with_image, with_image]),
        "timestep": model_timestep(sigma),
        "added_time_ids": np.stack([time_ids] * 3),
        "image_embedding": np.stack([np.zeros_like(embedding), embedding, embedding]),
        "audio_tokens": np.stack([silent, silent, condition.audio_tokens[indices]]),
        **{f"mask_{level}": mask for level, mask in enumerate(condition.masks)},
    }
