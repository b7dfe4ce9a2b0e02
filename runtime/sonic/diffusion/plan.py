"""What denoising a clip will do, as data: every step's noise level, windows, guidance and calls.

    plan = plan_denoising(frames=40, steps=25, constants=constants.sampler, branches_at_once=3)
    plan.steps[0].sigma                  # 700.0
    plan.steps[0].windows[0]             # the frames of the first window: 0, 1, ..., 24
    plan.steps[0].calls                  # ((0, 1, 2),): one call for all three guidance branches

The sampler executes a plan; estimates, memory checks and progress count the same one. What another schedule
or another guidance rule changes is the plan, not who reads it.
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
    """The windows of one step over all frames of a clip, which is a ring: frame indices wrap around.

    Each is an int array (length,) of frame indices. They are computed when they are read, so that a plan
    does not grow with its clip.

    Attributes:
        frames: of the clip.
        length: frames of a window; in shorter clips a frame appears more than once.
        stride: frames from one window's start to the next.
        shift: how many frames earlier than at step 0 every window starts.
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
    """One step: every window goes from one noise level to the next.

    Attributes:
        sigma, next_sigma: noise levels before and after the step.
        image_scale, audio_scale: guidance scales; :func:`sonic.diffusion.guidance.guide`.
        windows: the frames of every window.
        calls: for every call of the UNet that a window needs, the guidance branches in its batch.
    """

    sigma: float
    next_sigma: float
    image_scale: float
    audio_scale: float
    windows: RingWindows
    calls: tuple[tuple[int, ...], ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """What each branch counts in the guided prediction; those that count nothing are in no call."""
        return branch_weights(self.image_scale, self.audio_scale)

    @property
    def call_count(self) -> int:
        """Calls of the UNet. None of them depends on another: all may run at the same time."""
        return len(self.windows) * len(self.calls)


@dataclass(frozen=True)
class DenoisingPlan:
    """All steps of one clip.

    Attributes:
        frames: that are denoised.
        steps: in their order; each needs the result of the one before.
    """

    frames: int
    steps: tuple[DenoisingStep, ...]

    @property
    def window_count(self) -> int:
        """Windows of all steps, which is what progress counts."""
        return sum(len(step.windows) for step in self.steps)

    @property
    def call_count(self) -> int:
        """Calls of the UNet in all steps."""
        return sum(step.call_count for step in self.steps)

    @property
    def evaluation_count(self) -> int:
        """Guidance branches of windows in all steps: what the UNet's work is proportional to."""
        return sum(len(step.windows) * sum(map(len, step.calls)) for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file; a step's windows are the first frame of each."""
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
    """The published sampler: a Karras schedule, windows that move with every step, constant guidance rules.

    Args:
        frames: that are denoised, at least 1.
        steps: denoising steps, at least 1.
        constants: noise levels, guidance scales and windows of the bundle.
        branches_at_once: guidance branches in one call of the UNet.
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
    """The windows of a step: they start `window_shift_frames` earlier than at the step before."""
    return RingWindows(
        frames,
        constants.window_frames,
        constants.window_frames - constants.window_overlap_frames,
        step * constants.window_shift_frames,
    )


def _calls(branches: tuple[int, ...], at_once: int) -> tuple[tuple[int, ...], ...]:
    return tuple(branches[start : start + at_once] for start in range(0, len(branches), at_once))
