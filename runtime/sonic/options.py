"""What a user may ask of one generation, checked."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

from sonic.bundle.constants import GUIDANCE_BRANCHES, Constants
from sonic.errors import InputError
from sonic.host import cpu_count

_RESOLUTION_LIMITS_PIXELS = (64, 4096)


@dataclass(frozen=True)
class GenerationOptions:
    """The options of :meth:`sonic.SonicModel.generate`; None means the bundle's or the input's own.

    Raises:
        InputError: a value is out of its range.
    """

    duration_seconds: float | None = None
    resolution_pixels: int | None = None
    steps: int | None = None
    seed: int | None = None
    dynamic_scale: float = 1.0
    motion_scale: float = 1.0
    expand_ratio: float | None = None
    lip_sync_correction: bool = False
    smooth_motion: bool = False

    def __post_init__(self) -> None:
        low, high = _RESOLUTION_LIMITS_PIXELS
        _check("duration", self.duration_seconds, 0.1, math.inf, "seconds")
        _check("resolution", self.resolution_pixels, low, high, "pixels of the short side", whole=True)
        _check("steps", self.steps, 1, 1000, "denoising steps", whole=True)
        _check("seed", self.seed, 0, 2**63 - 1, "", whole=True)
        _check("dynamic_scale", self.dynamic_scale, 0.0, 10.0, "times the motion buckets")
        _check("motion_scale", self.motion_scale, 0.0, 10.0, "times the expression bucket")
        _check("expand_ratio", self.expand_ratio, 0.0, 10.0, "face sizes added on each side")

    def resolved(self, constants: Constants) -> GenerationOptions:
        """The same options with the bundle's resolution, steps and seed where none was given."""
        return replace(
            self,
            resolution_pixels=self.resolution_pixels or constants.portrait.default_resolution_pixels,
            steps=self.steps or constants.sampler.steps,
            seed=constants.sampler.seed if self.seed is None else self.seed,
        )


MEMORY_MODES = ("low", "balanced", "fast")


@dataclass(frozen=True)
class RunOptions:
    """How submodels run; none of it changes what is asked for.

    Attributes:
        memory: "low" runs the guidance branches one after another, "balanced" as one batch; "fast" runs
            branches and windows apart as "low" does, and as many of them at the same time as the cores
            are enough for, each with `threads` threads, or one where that is None.
        threads: threads for one operator; None lets the engine choose.
        bfloat16: multiply float32 matrices in bfloat16, on aarch64 processors that can: faster, and no
            longer equal to full precision.

    Raises:
        InputError: a mode that does not exist, or no thread.
    """

    memory: str = "balanced"
    threads: int | None = None
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if self.memory not in MEMORY_MODES:
            raise InputError(f"memory is {self.memory!r}, but should be one of {', '.join(MEMORY_MODES)}")
        _check("threads", self.threads, 1, 1024, "", whole=True)

    @property
    def branches_at_once(self) -> int:
        """Guidance branches in one call of the UNet."""
        return GUIDANCE_BRANCHES if self.memory == "balanced" else 1

    @property
    def calls_at_once(self) -> int:
        """Calls of the UNet at the same time."""
        return max(1, cpu_count() // (self.threads or 1)) if self.memory == "fast" else 1

    @property
    def threads_of_a_call(self) -> int | None:
        """Threads of one call; None where the engine is to choose.

        Engines know the processor only: ONNX Runtime pins a thread to every core, be it the process's or
        not. And with more threads than a control group's quota, all are stopped together for a part of
        every period.
        """
        if self.threads is not None:
            return self.threads
        if self.memory == "fast":
            return 1
        cores = cpu_count()
        return cores if cores < (os.cpu_count() or 1) else None

    @property
    def threads_at_once(self) -> int:
        """Threads of all calls at the same time."""
        return self.calls_at_once * (self.threads_of_a_call or cpu_count())


def _check(
    name: str, value: float | None, low: float, high: float, unit: str, *, whole: bool = False
) -> None:
    if value is None:
        return
    kind = "a whole number" if whole else "a number"
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        bounds = f"of at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        wanted = f"{kind} {bounds} {unit}".rstrip()
        raise InputError(f"{name} is {value!r}, but should be {wanted}")


BALANCED = RunOptions()
