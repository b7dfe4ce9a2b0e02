"""What a user may ask of one generation, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sonic.constants import Constants
from sonic.errors import InputError

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
