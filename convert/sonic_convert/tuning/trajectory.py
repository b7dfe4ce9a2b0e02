"""Records a clip's way from noise to the result, with what every guidance branch predicts on it.

    trajectory = record_trajectory(model, example, options, guidance, folder)
    trajectory.latents[3]             # before step 3, (frames, 4, h, w)
    trajectory.audio_differences[3]   # (both - image) there

Everything that plans are compared by follows from these arrays, without another evaluation of the UNet.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from sonic.diffusion.guidance import differences, guide
from sonic.diffusion.plan import DenoisingPlan
from sonic.diffusion.schedule import derivative, input_scale
from sonic.engines.watched import Call
from sonic.media.video import Video
from sonic.model import SonicModel
from sonic.options import GenerationOptions
from sonic.storage.files import replacing
from sonic_calibration.recording.examples import Example, generate_example


@dataclass(frozen=True)
class Trajectory:
    """A clip at all levels of the published schedule; where windows overlap, the mean over them.

    Attributes:
        sigmas: the noise level before every step, and zero: float64 (steps + 1,).
        scales: image and audio guidance scale of every step: float64 (steps, 2).
        latents: before every step, and the result: float32 (steps + 1, frames, 4, h, w).
        derivatives: (x - denoised) / sigma with guidance, float32 (steps, frames, 4, h, w).
        image_differences, audio_differences: (image - neither) and (both - image) of the predictions,
            float32 (steps, frames, 4, h, w).
    """

    sigmas: np.ndarray
    scales: np.ndarray
    latents: np.ndarray
    derivatives: np.ndarray
    image_differences: np.ndarray
    audio_differences: np.ndarray

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file, completely or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        with replacing(path, "the trajectory") as partial:
            np.savez(partial, **{item.name: getattr(self, item.name) for item in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{item.name: arrays[item.name] for item in fields(cls)})


class TrajectoryRecorder:
    """Collects the calls of the UNet while one clip is generated; an observer of that generation.

    Only the sums over windows of each step are kept.

    Args:
        plan: the clip's, with the published sampler.
    """

    def __init__(self, plan: DenoisingPlan) -> None:
        self._plan = plan
        self._parts: dict[str, list[np.ndarray]] = {}
        self._counts = [
            np.bincount(np.concatenate(list(step.windows)), minlength=plan.frames) for step in plan.steps
        ]
        self._predictions: dict[int, np.ndarray] = {}

    def __call__(self, call: Call) -> None:
        """Take a call of a submodel; those of others than the UNet are ignored."""
        if call.submodel != "unet":
            return
        tags = call.tags
        step = self._plan.steps[tags["step"]]
        (branch,) = tags["branches"]
        self._predictions[branch] = call.outputs["prediction"][0]
        if branch != step.branches[-1]:
            return
        channels = self._predictions[branch].shape[1]
        latents = call.inputs["sample"][0, :, :channels] / np.float32(input_scale(step.sigma))
        guided = guide(self._predictions, step.image_scale, step.audio_scale)
        # A difference that was not evaluated has a scale of 1, and no weight.
        image, audio = (
            np.zeros_like(latents) if difference is None else difference
            for difference in differences(self._predictions)
        )
        values = {
            "latents": latents,
            "derivatives": derivative(latents, guided, step.sigma),
            "image_differences": image,
            "audio_differences": audio,
        }
        for name, value in values.items():
            self._add(name, tags["step"], step.windows[tags["window"]], value)
        self._predictions = {}

    def _add(self, name: str, step: int, indices: np.ndarray, values: np.ndarray) -> None:
        parts = self._parts.setdefault(name, [])
        if len(parts) == step:
            parts.append(np.zeros((self._plan.frames, *values.shape[1:]), np.float32))
        count = self._counts[step][indices].astype(np.float32)
        np.add.at(parts[step], indices, values / count[:, None, None, None])

    @property
    def result(self) -> Trajectory:
        """The trajectory, once the clip is generated."""
        stacked = {name: np.stack(parts) for name, parts in self._parts.items()}
        steps = self._plan.steps
        last = steps[-1]
        end = stacked["latents"][-1] + stacked["derivatives"][-1] * np.float32(last.next_sigma - last.sigma)
        stacked["latents"] = np.concatenate([stacked["latents"], end[None]])
        return Trajectory(
            np.array([*(step.sigma for step in steps), last.next_sigma]),
            np.array([(step.image_scale, step.audio_scale) for step in steps]),
            **stacked,
        )


def record_trajectory(
    model: SonicModel, example: Example, plan: DenoisingPlan, options: GenerationOptions
) -> tuple[Video, Trajectory]:
    """Generate an example with the published sampler, and record it.

    Args:
        model: the bundle.
        example: portrait and speech.
        plan: the clip's denoising plan for these options.
        options: of the clip.

    Raises:
        InputError: the example or an option cannot be used.
        BundleError: the bundle cannot be run.
    """
    recorder = TrajectoryRecorder(plan)
    video = generate_example(model, example, options, recorder)
    return video, recorder.result


__all__ = ["Trajectory", "TrajectoryRecorder", "record_trajectory"]
