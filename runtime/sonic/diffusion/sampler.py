"""Denoising clips, several at the same time, by executing the plan of each (:mod:`sonic.diffusion.plan`).

Where windows overlap, and in clips shorter than a window, whose frames appear more than once, the results are
averaged. Only the windows being computed are in memory; the latents of long clips are on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonic.bundle.constants import SamplerConstants
from sonic.bundle.manifest import mask_input
from sonic.diffusion.guidance import guide
from sonic.diffusion.plan import DenoisingPlan, DenoisingStep
from sonic.diffusion.schedule import euler_step, input_scale, model_timestep
from sonic.engines.base import Session
from sonic.errors import BundleError
from sonic.storage.spool import ArraySpool


@dataclass(frozen=True)
class ClipCondition:
    """The UNet's conditioning for a clip.

    Attributes:
        reference_latent: (4, h, w) float32, the VAE's unscaled mode of the portrait.
        image_embedding: (width,) float32.
        audio_tokens: (frames, tokens, width) float32.
        unconditional_tokens: (tokens, width) float32.
        buckets: (frames, 2) float32, scaled motion buckets.
        masks: the face mask at every resolution level, (1, 1, h_level, w_level) float32, finest first.
    """

    reference_latent: np.ndarray
    image_embedding: np.ndarray
    audio_tokens: ArraySpool | np.ndarray
    unconditional_tokens: np.ndarray
    buckets: np.ndarray
    masks: Sequence[np.ndarray]


class ClipSampler:
    """Takes the latents of one clip from noise to the result, one denoising step after another.

    Args:
        noise: the noise of every frame, (4, h, w) float32, standard normal; read once, so an iterator will
            do.
        condition: the clip's conditioning.
        plan: the steps to execute.
        constants: the bundle's, for the sampler.
        spool_directory: folder of the temporary files that hold the latents of long clips; the system's
            temporary folder by default.

    Attributes:
        plan: the steps to execute.
        latents: (frames, 4, h, w) float32, scaled; final once :attr:`finished`.
        step: how many steps are done.

    Raises:
        OutputError: the latents cannot be stored.
    """

    def __init__(
        self,
        noise: Iterable[np.ndarray],
        condition: ClipCondition,
        plan: DenoisingPlan,
        constants: SamplerConstants,
        spool_directory: Path | None = None,
    ) -> None:
        self.plan, self.step = plan, 0
        self._condition, self._constants = condition, constants
        shape = condition.reference_latent.shape
        self.latents = ArraySpool(shape, np.float32, directory=spool_directory)
        self._sums = ArraySpool(shape, np.float32, directory=spool_directory)  # of this step's windows
        start = condition.reference_latent * np.float32(constants.initial_latent_scale)
        for frame in noise:
            self.latents.append((frame * np.float32(plan.steps[0].sigma) + start)[None])
            self._sums.append(np.zeros_like(start)[None])

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= len(self.plan.steps)

    @property
    def current(self) -> DenoisingStep:
        """The next step to execute."""
        return self.plan.steps[self.step]

    def predict(
        self, unet: Session, window: int, indices: np.ndarray, branches: tuple[int, ...]
    ) -> dict[int, np.ndarray]:
        """Run one UNet call for a window of the current step; may run in any thread.

        Returns:
            For each of `branches`, its prediction, float32 (window frames, 4, h, w).

        Raises:
            BundleError: the UNet returned values that are not finite.
        """
        sigma = self.current.sigma
        inputs = window_inputs(
            self.latents[indices], indices, sigma, self._condition, self._constants, branches
        )
        outputs = unet.run(inputs, step=self.step, sigma=sigma, window=window, branches=branches)
        predicted = outputs["prediction"]
        if not np.isfinite(predicted).all():
            raise BundleError(
                f"the UNet returned values that are not finite at step {self.step + 1} of "
                f"{len(self.plan.steps)}; the bundle's weights or precision cannot be right: run "
                "'sonic-convert parity'"
            )
        return dict(zip(branches, predicted, strict=True))

    def finish_window(self, indices: np.ndarray, predictions: Mapping[int, np.ndarray]) -> None:
        """Advance a window's frames by one step, given the predictions of its branches.

        The windows of a step have to be finished in order, so that the sums are the same to the last bit.
        """
        step = self.current
        guided = guide(predictions, step.image_scale, step.audio_scale)
        stepped = euler_step(self.latents[indices], guided, step.sigma, step.next_sigma)
        frames, positions = np.unique(indices, return_inverse=True)
        sums = self._sums[frames]
        np.add.at(sums, positions, stepped)
        self._sums[frames] = sums

    def finish_step(self) -> None:
        """Combine the results of this step: each frame becomes the mean over the windows that contain it."""
        counts = np.bincount(np.concatenate(list(self.current.windows))).astype(np.float32)
        at_once = self.current.windows.length
        for start in range(0, len(counts), at_once):
            sums, held = self._sums[start : start + at_once], counts[start : start + at_once]
            frames = np.arange(start, start + len(held))
            self.latents[frames] = sums / held[:, None, None, None]
            self._sums[frames] = np.zeros_like(sums)
        self.step += 1


def denoise_together(
    samplers: Sequence[ClipSampler],
    unet: Session,
    calls_at_once: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Take every clip through all its steps.

    The calls of one step are independent across all windows and clips: `calls_at_once` of them run at
    the same time. Each is computed as it would be alone, so that a clip's bytes do not depend on which
    other clips are denoised with it.

    Args:
        samplers: the clips, changed in place.
        unet: the open UNet.
        calls_at_once: number of threads that call it.
        advance: called after every window of every step.

    Raises:
        BundleError: the UNet returned values that are not finite.
    """
    with ThreadPoolExecutor(calls_at_once) as pool:
        while unfinished := [sampler for sampler in samplers if not sampler.finished]:
            running = [_submit_step(pool, sampler, unet) for sampler in unfinished]
            try:
                for sampler, windows in zip(unfinished, running, strict=True):
                    while windows:
                        indices, calls = windows.popleft()  # dropping the futures frees their predictions
                        predictions: dict[int, np.ndarray] = {}
                        for call in calls:
                            predictions |= call.result()
                        sampler.finish_window(indices, predictions)
                        advance()
                    sampler.finish_step()
            except BaseException:  # an interrupt too: cancel the calls that have not started
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _submit_step(
    pool: ThreadPoolExecutor, sampler: ClipSampler, unet: Session
) -> deque[tuple[np.ndarray, list[Future[dict[int, np.ndarray]]]]]:
    """Submit all calls of a step; returns the frame indices of every window and the futures of its calls."""
    step = sampler.current
    return deque(
        (indices, [pool.submit(sampler.predict, unet, window, indices, branches) for branches in step.calls])
        for window, indices in enumerate(step.windows)
    )


def window_inputs(
    latents: np.ndarray,
    indices: np.ndarray,
    sigma: float,
    condition: ClipCondition,
    constants: SamplerConstants,
    branches: Sequence[int],
) -> dict[str, np.ndarray]:
    """The UNet's inputs for one window, with a batch row for each guidance branch.

    Args:
        latents: the latents of the window's frames, (frames, 4, h, w) float32, scaled.
        indices: the window's frame indices, int (frames,).
        sigma: the latents' noise level.
        condition: the clip's conditioning.
        constants: the bundle's, for the sampler.
        branches: the branches of the batch; 0 is conditioned on neither image nor audio, 1 on the image,
            2 on both.
    """
    noisy = latents * np.float32(input_scale(sigma))
    reference = np.broadcast_to(condition.reference_latent, latents.shape)
    silent = np.broadcast_to(
        condition.unconditional_tokens, (len(indices), *condition.unconditional_tokens.shape)
    )
    speech = condition.audio_tokens[indices] if 2 in branches else silent
    embedding = condition.image_embedding
    buckets = condition.buckets[indices].mean(axis=0)
    time_ids = np.array([constants.frame_rate_id, *buckets], np.float32)
    hidden, unseen = np.zeros_like(reference), np.zeros_like(embedding)
    return {
        "sample": np.stack(
            [np.concatenate([noisy, reference if branch else hidden], axis=1) for branch in branches]
        ),
        "timestep": model_timestep(sigma),
        "added_time_ids": np.stack([time_ids] * len(branches)),
        "image_embedding": np.stack([embedding if branch else unseen for branch in branches]),
        "audio_tokens": np.stack([speech if branch == 2 else silent for branch in branches]),
        **{mask_input(level): mask for level, mask in enumerate(condition.masks)},
    }
