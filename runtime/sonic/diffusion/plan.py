"""How a clip will be denoised, as data: the noise level, windows, guidance and calls of every step.

    plan = plan_denoising(frames=40, steps=25, constants=constants.sampler, branches_at_once=3)
    plan.steps[0].sigma                  # 700.0
    plan.steps[0].windows[0]             # the frames of the first window: 0, 1, ..., 24
    plan.steps[0].calls                  # ((0, 1, 2),): one call for all three guidance branches

The sampler executes a plan; estimates, memory checks and progress are computed from the same one. Another
schedule or guidance rule only changes the plan, not the code that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from sonic.bundle.constants import SamplerConstants
from sonic.diffusion.guidance import branch_weights, guidance_scales, needed_branches
from sonic.diffusion.schedule import karras_sigmas


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
class DenoisingStep:
    """One step, which takes every window from one noise level to the next.

    Attributes:
        sigma, next_sigma: noise levels before and after the step.
        image_scale, audio_scale: guidance scales; see :func:`sonic.diffusion.guidance.guide`.
        windows: the frames of every window.
        calls: the guidance branches in the batch of each UNet call that a window needs.
    """

    sigma: float
    next_sigma: float
    image_scale: float
    audio_scale: float
    windows: RingWindows
    calls: tuple[tuple[int, ...], ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each branch in the guided prediction; branches of weight zero are in no call."""
        return branch_weights(self.image_scale, self.audio_scale)

    @property
    def call_count(self) -> int:
        """The number of UNet calls. They are independent of each other: all may run at the same time."""
        return len(self.windows) * len(self.calls)


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
        return sum(len(step.windows) for step in self.steps)

    @property
    def call_count(self) -> int:
        """The number of UNet calls in all steps."""
        return sum(step.call_count for step in self.steps)

    @property
    def evaluation_count(self) -> int:
        """Guidance branches summed over all windows and steps; the UNet's work is proportional to it."""
        return sum(len(step.windows) * sum(map(len, step.calls)) for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file; a step's windows are given by their number, length, stride and shift."""
        return {
            "frames": self.frames,
            "steps": [
                {
                    "sigma": step.sigma,
                    "next_sigma": step.next_sigma,
                    "image_scale": step.image_scale,
                    "audio_scale": step.audio_scale,
                    "branch_weights": list(step.weights),
                    "calls": [list(branches) for branches in step.calls],
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
        return cls(
            frames,
            tuple(
                DenoisingStep(
                    float(step["sigma"]),
                    float(step["next_sigma"]),
                    float(step["image_scale"]),
                    float(step["audio_scale"]),
                    RingWindows(
                        frames,
                        int(step["window_frames"]),
                        int(step["window_stride_frames"]),
                        int(step["window_shift_frames"]),
                    ),
                    tuple(tuple(map(int, branches)) for branches in step["calls"]),
                )
                for step in values["steps"]
            ),
        )


def plan_denoising(
    frames: int, steps: int, constants: SamplerConstants, branches_at_once: int
) -> DenoisingPlan:
    """Plan the published sampler: a Karras schedule, windows that move with every step, fixed guidance rules.

    Args:
        frames: number of frames to denoise, at least 1.
        steps: number of denoising steps, at least 1.
        constants: the bundle's noise levels, guidance scales and windows.
        branches_at_once: the most guidance branches in one call of the UNet.
    """
    sigmas = karras_sigmas(steps, constants)
    image_scales = guidance_scales(constants.image_guidance, steps)
    audio_scales = guidance_scales(constants.audio_guidance, steps)
    return DenoisingPlan(
        frames,
        tuple(
            DenoisingStep(
                float(sigmas[index]),
                float(sigmas[index + 1]),
                float(image_scales[index]),
                float(audio_scales[index]),
                step_windows(frames, index, constants),
                _calls(needed_branches(image_scales[index], audio_scales[index]), branches_at_once),
            )
            for index in range(steps)
        ),
    )


def step_windows(frames: int, step: int, constants: SamplerConstants) -> RingWindows:
    """The windows of a step, which start `window_shift_frames` earlier than those of the previous step."""
    return RingWindows(
        frames,
        constants.window_frames,
        constants.window_frames - constants.window_overlap_frames,
        step * constants.window_shift_frames,
    )


def _calls(branches: tuple[int, ...], at_once: int) -> tuple[tuple[int, ...], ...]:
    return tuple(branches[start : start + at_once] for start in range(0, len(branches), at_once))
