"""The latents of one clip, and how each step of its plan (:mod:`sonic.diffusion.plan`) changes them.

Where windows overlap, and in clips shorter than a window, whose frames appear more than once, the results are
averaged. Only the windows being computed are in memory; the latents of long clips are on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonic.bundle.constants import SamplerConstants
from sonic.bundle.manifest import mask_input
from sonic.diffusion.frame_means import FrameMeans
from sonic.diffusion.guidance import differences, guide
from sonic.diffusion.plan import DenoisingPlan, DenoisingStep
from sonic.diffusion.schedule import euler_step, input_scale, model_timestep
from sonic.engines.base import Session
from sonic.engines.checked import NotFinite
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


@dataclass(frozen=True, eq=False)
class _WindowCounts:
    """How often each frame is in a step's windows, int (frames,), and how often in those not yet finished."""

    step: int
    all: np.ndarray
    unfinished: np.ndarray


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
        after_step: called with the sampler after every step.

    Attributes:
        plan: the steps to execute.
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
        after_step: Callable[[ClipSampler], None] = lambda sampler: None,
    ) -> None:
        self.plan, self.step = plan, 0
        self._condition, self._constants = condition, constants
        self._after_step = after_step
        shape = condition.reference_latent.shape
        self._latents = FrameMeans(shape, spool_directory)
        #: The differences between branches that later steps reuse, (frames, 4, h, w) float32.
        self._image_differences = FrameMeans(shape, spool_directory) if plan.keeps_image else None
        self._audio_differences = FrameMeans(shape, spool_directory) if plan.keeps_audio else None
        start = condition.reference_latent * np.float32(constants.initial_latent_scale)
        for frame in noise:
            self._latents.append(frame * np.float32(plan.steps[0].sigma) + start)
            for kept in (self._image_differences, self._audio_differences):
                if kept is not None:
                    kept.append(np.zeros_like(start))
        self._window_counts: _WindowCounts | None = None

    @property
    def latents(self) -> ArraySpool:
        """(frames, 4, h, w) float32, scaled; final once :attr:`finished`."""
        return self._latents.rows

    @property
    def state(self) -> dict[str, ArraySpool]:
        """Everything that changes from step to step, by name: (frames, 4, h, w) float32 each."""
        named = {
            "latents": self._latents,
            "image_differences": self._image_differences,
            "audio_differences": self._audio_differences,
        }
        return {name: means.rows for name, means in named.items() if means is not None}

    def restore(self, step: int, state: Mapping[str, Iterable[np.ndarray]]) -> None:
        """Go on as after `step` steps, with the rows that :attr:`state` had then."""
        for name, rows in state.items():
            kept = self.state[name]
            for index, row in enumerate(rows):
                kept[np.array([index])] = row[None]
        self.step = step

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= len(self.plan.steps)

    @property
    def current(self) -> DenoisingStep:
        """The next step to execute."""
        return self.plan.steps[self.step]

    @property
    def early_windows(self) -> Iterator[int]:
        """The windows of the next step whose frames are in no window of this step that is still to finish."""
        if self.step + 1 < len(self.plan.steps):
            for number, indices in enumerate(self.plan.steps[self.step + 1].windows):
                if not self._counts.unfinished[indices].any():
                    yield number

    def early_latents(self, indices: np.ndarray) -> np.ndarray:
        """The latents that the frames of an early window will have once this step is finished."""
        return self._latents.means(indices, self._counts.all[indices])

    def predict(
        self, unet: Session, step: int, window: int, branch: int, latents: np.ndarray | None = None
    ) -> np.ndarray:
        """Run the UNet for a guidance branch of a window; may run in any thread.

        Args:
            unet: the open UNet.
            step: the current step's number, or the next one's if `latents` are given.
            window, branch: what to predict.
            latents: those of the window's frames before that step; by default the current ones.

        Returns:
            The prediction, float32 (window frames, 4, h, w).

        Raises:
            BundleError: the UNet returned values that are not finite.
        """
        indices, sigma = self.plan.steps[step].windows[window], self.plan.steps[step].sigma
        latents = self.latents[indices] if latents is None else latents
        inputs = window_inputs(latents, indices, sigma, self._condition, self._constants, branch)
        try:
            outputs = unet.run(inputs, step=step, sigma=sigma, window=window, branches=(branch,))
        except NotFinite as error:
            raise NotFinite(
                f"the UNet returned values that are not finite at step {step + 1} of "
                f"{len(self.plan.steps)}; the bundle's weights or precision cannot be right: run "
                "'sonic-convert parity'"
            ) from error
        predicted: np.ndarray = outputs["prediction"][0]
        return predicted

    def finish_window(self, indices: np.ndarray, predictions: Mapping[int, np.ndarray]) -> None:
        """Advance a window's frames by one step, given the predictions of its branches.

        The windows of a step have to be finished in order, so that the sums are the same to the last bit.
        """
        step = self.current
        guided = guide(
            predictions,
            step.image_scale,
            step.audio_scale,
            _multiple(self._image_differences, indices, step.image_reuse),
            _multiple(self._audio_differences, indices, step.audio_reuse),
        )
        self._latents.add(indices, euler_step(self.latents[indices], guided, step.sigma, step.next_sigma))
        for kept, difference in zip(self._kept, differences(predictions), strict=True):
            if kept is not None and difference is not None:
                kept.add(indices, difference)
        np.subtract.at(self._counts.unfinished, indices, 1)

    def finish_step(self) -> None:
        """Combine the results of this step: each frame becomes the mean over the windows that contain it."""
        for means in (self._latents, *self._kept):
            if means is not None:
                means.finish_step(self._counts.all)
        self.step += 1
        self._after_step(self)

    @property
    def _counts(self) -> _WindowCounts:
        """Those of the current step."""
        if self._window_counts is None or self._window_counts.step != self.step:
            counts = np.bincount(np.concatenate(list(self.current.windows)))
            self._window_counts = _WindowCounts(self.step, counts, counts.copy())
        return self._window_counts

    @property
    def _kept(self) -> tuple[FrameMeans | None, FrameMeans | None]:
        """The differences that the current step leaves for later ones."""
        step = self.current
        return (
            self._image_differences if step.keeps_image else None,
            self._audio_differences if step.keeps_audio else None,
        )


def _multiple(differences: FrameMeans | None, indices: np.ndarray, multiple: float) -> np.ndarray | None:
    """A multiple of earlier differences of a window's frames; None where there is nothing to reuse."""
    if differences is None or not multiple:
        return None
    scaled: np.ndarray = differences.rows[indices] * np.float32(multiple)
    return scaled


def window_inputs(
    latents: np.ndarray,
    indices: np.ndarray,
    sigma: float,
    condition: ClipCondition,
    constants: SamplerConstants,
    branch: int,
) -> dict[str, np.ndarray]:
    """The UNet's inputs for one guidance branch of a window, a batch of one.

    Args:
        latents: the latents of the window's frames, (frames, 4, h, w) float32, scaled.
        indices: the window's frame indices, int (frames,).
        sigma: the latents' noise level.
        condition: the clip's conditioning.
        constants: the bundle's, for the sampler.
        branch: 0 is conditioned on neither image nor audio, 1 on the image, 2 on both.
    """
    noisy = latents * np.float32(input_scale(sigma))
    reference = np.broadcast_to(condition.reference_latent, latents.shape)
    tokens = (
        condition.audio_tokens[indices]
        if branch == 2
        else np.broadcast_to(
            condition.unconditional_tokens, (len(indices), *condition.unconditional_tokens.shape)
        )
    )
    embedding = condition.image_embedding
    buckets = condition.buckets[indices].mean(axis=0)
    return {
        "sample": np.concatenate([noisy, reference if branch else np.zeros_like(reference)], axis=1)[None],
        "timestep": model_timestep(sigma),
        "added_time_ids": np.array([[constants.frame_rate_id, *buckets]], np.float32),
        "image_embedding": (embedding if branch else np.zeros_like(embedding))[None],
        "audio_tokens": tokens[None],
        **{mask_input(level): mask for level, mask in enumerate(condition.masks)},
    }
