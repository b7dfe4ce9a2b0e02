"""Denoising a clip in ring windows with three guidance branches.

At step s every window starts ``s * window_shift_frames`` frames earlier and frame indices wrap around
the clip, so that no frame stays at a window's border; where windows overlap (and in clips shorter than
a window, whose frames appear more than once) the results are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np

from sonic.constants import SamplerConstants
from sonic.engine import Session
from sonic.errors import BundleError
from sonic.options import GUIDANCE_BRANCHES
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


class ClipSampler:
    """The latents of one clip from noise to what is decoded, one denoising step after another.

    Args:
        noise: (frames, 4, h, w) float32, standard normal.
        condition: what the clip shows and says.
        steps: denoising steps, at least 1.
        constants: sigmas, guidance and windows of the bundle.
        branches_at_once: guidance branches in one call of the UNet.

    Attributes:
        latents: (frames, 4, h, w) float32, scaled; finished when `step` is `steps`.
        step: how many steps are done.
    """

    def __init__(
        self,
        noise: np.ndarray,
        condition: ClipCondition,
        steps: int,
        constants: SamplerConstants,
        branches_at_once: int = GUIDANCE_BRANCHES,
    ) -> None:
        self.steps, self.step = steps, 0
        self._condition, self._constants = condition, constants
        self._branches_at_once = branches_at_once
        self._sigmas = karras_sigmas(steps, constants)
        self._image_scales = guidance_scales(constants.image_guidance, steps)
        self._audio_scales = guidance_scales(constants.audio_guidance, steps)
        self._reading = Lock()  # a spool has one file position
        self.latents = noise * self._sigmas[0] + condition.reference_latent * np.float32(
            constants.initial_latent_scale
        )

    @property
    def calls(self) -> int:
        """How often the UNet runs in all."""
        return self.steps * len(self.windows)

    @property
    def windows(self) -> list[np.ndarray]:
        """The frames of this step's windows."""
        return window_indices(len(self.latents), self.step, self._constants)

    def run_window(self, unet: Session, window: int, indices: np.ndarray) -> np.ndarray:
        """One window of this step: its frames' latents after the step; may run in any thread.

        Raises:
            BundleError: the UNet returned values that are not finite.
        """
        sigma, next_sigma = float(self._sigmas[self.step]), float(self._sigmas[self.step + 1])
        latents = self.latents[indices]
        image_scale, audio_scale = self._image_scales[self.step], self._audio_scales[self.step]
        needed = needed_branches(image_scale, audio_scale)
        with self._reading:
            inputs = window_inputs(latents, indices, sigma, self._condition, self._constants)
        predictions: dict[int, np.ndarray] = {}
        for start in range(0, len(needed), self._branches_at_once):
            branches = needed[start : start + self._branches_at_once]
            predicted = unet.run(
                _of_branches(inputs, branches), step=self.step, sigma=sigma, window=window,
                branches=branches,
            )["prediction"]  # fmt: skip
            predictions |= dict(zip(branches, predicted, strict=True))
        if not all(np.isfinite(prediction).all() for prediction in predictions.values()):
            raise BundleError(
                f"the UNet returned values that are not finite at step {self.step + 1} of "
                f"{self.steps}; the bundle's weights or precision cannot be right: run "
                "'sonic-convert parity'"
            )
        guided = guide(predictions, image_scale, audio_scale)
        return euler_step(latents, guided, sigma, next_sigma)

    def finish_step(self, stepped: Sequence[np.ndarray]) -> None:
        """Put the results of all windows of this step, in their order, together."""
        total = np.zeros_like(self.latents)
        counts = np.zeros((len(total), 1, 1, 1), np.float32)
        for indices, values in zip(self.windows, stepped, strict=True):
            np.add.at(total, indices, values)
            np.add.at(counts, indices, 1)
        self.latents = total / counts
        self.step += 1


def denoise_together(
    samplers: Sequence[ClipSampler],
    unet: Session,
    calls_at_once: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Take every clip through all its steps.

    The windows of one step, of all clips, do not depend on each other: `calls_at_once` of them run at
    the same time. Each is computed as it would be alone, so that a clip's bytes do not depend on who
    is denoised beside it.

    Args:
        samplers: the clips, changed in place.
        unet: the open UNet.
        calls_at_once: threads that call it.
        advance: called after every window of every step.

    Raises:
        BundleError: the UNet returned values that are not finite.
    """
    with ThreadPoolExecutor(calls_at_once) as pool:
        while unfinished := [sampler for sampler in samplers if sampler.step < sampler.steps]:
            running = [
                [
                    pool.submit(sampler.run_window, unet, window, indices)
                    for window, indices in enumerate(sampler.windows)
                ]
                for sampler in unfinished
            ]
            try:
                for sampler, futures in zip(unfinished, running, strict=True):
                    stepped = []
                    for future in futures:
                        stepped.append(future.result())
                        advance()
                    sampler.finish_step(stepped)
            except BaseException:  # an interrupt too: what has not begun never will
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def needed_branches(image_scale: float, audio_scale: float) -> tuple[int, ...]:
    """The guidance branches whose weight is not zero: 0 without both, 1 with the image, 2 with both."""
    weights = branch_weights(image_scale, audio_scale)
    return tuple(branch for branch, weight in enumerate(weights) if weight != 0)


def guide(
    predictions: Mapping[int, np.ndarray], image_scale: float, audio_scale: float
) -> np.ndarray:
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


def _of_branches(inputs: dict[str, np.ndarray], branches: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The rows of some branches of all inputs that have a row for each."""
    if len(branches) == GUIDANCE_BRANCHES:
        return inputs
    rows = list(branches)
    per_branch = ("sample", "added_time_ids", "image_embedding", "audio_tokens")
    return {name: value[rows] if name in per_branch else value for name, value in inputs.items()}


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
