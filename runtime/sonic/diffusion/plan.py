"""How a clip will be denoised, as data: the noise level, windows, guidance and calls of every step.

    plan = plan_denoising(40, published_steps(25, constants.sampler), constants.sampler)
    plan.steps[0].sigma                  # 700.0
    plan.steps[0].windows[0]             # the frames of the first window: 0, 1, ..., 24
    plan.steps[0].branches               # (0, 1, 2): a call of the UNet for each, in every window

The sampler executes a plan; estimates, memory checks and progress are computed from the same one. Another
schedule or guidance rule only changes the plan, not the code that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields
from typing import Any, overload

import numpy as np

from sonic.bundle.constants import SamplerConstants
from sonic.diffusion.guidance import branch_weights
from sonic.diffusion.steps import StepSettings, evaluations_per_window


@dataclass(frozen=True)
class RingWindows(Sequence[np.ndarray]):
    """The windows of one step over all frames of a clip, taken as a ring: frame indices wrap around.

    Each is an int array (length,) of frame indices. They are computed when they are read, so that the size
    of a plan does not depend on the length of the clip.

    Attributes:
        frames: number of frames in the clip.
        length: frames per window; in shorter clips a frame appears more than once.
        stride: frames from one window's start to the next.
        shift: by how many frames every window starts earlier than at step 0.
    """

    frames: int
    length: int
    stride: int
    shift: int = 0

    def __len__(self) -> int:
        return -(-self.frames // self.stride)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        start = range(0, self.frames, self.stride)[index]
        return (start - self.shift + np.arange(self.length)) % self.frames

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class DenoisingStep(StepSettings):
    """One step of one clip, which takes every window from one noise level to the next.

    Each branch of each window is a call of the UNet of its own. A batch of several branches would not be
    faster, and rounds differently: a product of one row is summed in another order than one of three.

    Attributes:
        windows: the frames of every window.
        keeps_image, keeps_audio: whether a later step reuses the difference that this step evaluates.
    """

    _: KW_ONLY
    windows: RingWindows
    keeps_image: bool = False
    keeps_audio: bool = False

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each branch in the guided prediction, where all are evaluated."""
        return branch_weights(self.image_scale, self.audio_scale)

    @property
    def call_count(self) -> int:
        """The number of UNet calls. They are independent of each other: all may run at the same time."""
        return len(self.windows) * len(self.branches)


@dataclass(frozen=True)
class DenoisingPlan:
    """All steps of one clip.

    Attributes:
        frames: number of frames that are denoised.
        steps: in order; each needs the result of the previous one.
    """

    frames: int
    steps: tuple[DenoisingStep, ...]

    @property
    def window_count(self) -> int:
        """The number of windows in all steps, which is the unit of progress."""
        return self.windows_until(len(self.steps))

    def windows_until(self, step: int) -> int:
        """The number of windows in the first `step` steps."""
        return sum(len(one.windows) for one in self.steps[:step])

    @property
    def call_count(self) -> int:
        """The number of UNet calls in all steps."""
        return sum(step.call_count for step in self.steps)

    @property
    def evaluations_per_window(self) -> int:
        """Guidance branches summed over all steps; the UNet's work is proportional to it."""
        return evaluations_per_window(self.steps)

    @property
    def keeps_image(self) -> bool:
        """Whether a step reuses the image's difference of an earlier one."""
        return any(step.keeps_image for step in self.steps)

    @property
    def keeps_audio(self) -> bool:
        """Whether a step reuses the audio's difference of an earlier one."""
        return any(step.keeps_audio for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file; a step's windows are given by their number, length, stride and shift."""
        return {
            "frames": self.frames,
            "steps": [
                {name: value for name, value in asdict(step).items() if name != "windows"}
                | {
                    "branches": list(step.branches),
                    "branch_weights": list(step.weights),
                    "window_frames": step.windows.length,
                    "window_stride_frames": step.windows.stride,
                    "window_shift_frames": step.windows.shift,
                    "windows": len(step.windows),
                }
                for step in self.steps
            ],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DenoisingPlan:
        """Read what :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError: an entry is missing or malformed.
        """
        frames = int(values["frames"])
        own = [item.name for item in fields(DenoisingStep) if item.name != "windows"]
        return cls(
            frames,
            tuple(
                DenoisingStep(
                    **{name: step[name] for name in own} | {"branches": tuple(map(int, step["branches"]))},
                    windows=RingWindows(
                        frames,
                        int(step["window_frames"]),
                        int(step["window_stride_frames"]),
                        int(step["window_shift_frames"]),
                    ),
                )
                for step in values["steps"]
            ),
        )


def plan_denoising(frames: int, steps: Sequence[StepSettings], constants: SamplerConstants) -> DenoisingPlan:
    """Plan the steps of one clip, with windows that move with every step.

    Args:
        frames: number of frames to denoise, at least 1.
        steps: the settings of every step, at least one; see :mod:`sonic.diffusion.steps`.
        constants: the bundle's, for the windows.
    """
    return DenoisingPlan(
        frames,
        tuple(
            DenoisingStep(
                **{item.name: getattr(step, item.name) for item in fields(StepSettings)},
                windows=step_windows(frames, index, constants),
                keeps_image=_reused(steps, index, {0, 1}, "image_reuse"),
                keeps_audio=_reused(steps, index, {1, 2}, "audio_reuse"),
            )
            for index, step in enumerate(steps)
        ),
    )


def _reused(steps: Sequence[StepSettings], index: int, needed: set[int], multiple: str) -> bool:
    """Whether the difference that step `index` evaluates is reused before it is evaluated again."""
    if not needed <= set(steps[index].branches):
        return False
    for step in steps[index + 1 :]:
        if needed <= set(step.branches):
            return False
        if getattr(step, multiple):
            return True
    return False


def step_windows(frames: int, step: int, constants: SamplerConstants) -> RingWindows:
    """The windows of a step, which start `window_shift_frames` earlier than those of the previous step."""
    return RingWindows(
        frames,
        constants.window_frames,
        constants.window_frames - constants.window_overlap_frames,
        step * constants.window_shift_frames,
    )
