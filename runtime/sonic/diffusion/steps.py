"""The denoising steps of a clip: noise levels, guidance scales, and which branches each step evaluates.

They come from the published schedule, from explicit noise levels, or from one of the bundle's speed presets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sonic.bundle.constants import SamplerConstants
from sonic.bundle.presets import ALL_BRANCHES, SpeedPreset, StepRule
from sonic.diffusion.guidance import guidance_scales, needed_branches
from sonic.diffusion.schedule import karras_sigmas, schedule_position


@dataclass(frozen=True)
class StepSettings:
    """One step of any clip.

    Attributes:
        sigma, next_sigma: noise levels before and after the step.
        image_scale, audio_scale: guidance scales; see :func:`sonic.diffusion.guidance.guide`.
        branches: the guidance branches that are evaluated.
        image_reuse, audio_reuse: where the branches of a difference are not evaluated, the multiple of the
            last evaluated one that takes its place; see :class:`sonic.bundle.presets.StepRule`.
    """

    sigma: float
    next_sigma: float
    image_scale: float
    audio_scale: float
    branches: tuple[int, ...]
    image_reuse: float = 0.0
    audio_reuse: float = 0.0


@dataclass(frozen=True)
class Guidance:
    """Guidance scales, each from its value at the first noise level to that at the last.

    Attributes:
        image, audio: (first, last).
    """

    image: tuple[float, float]
    audio: tuple[float, float]

    @classmethod
    def of(
        cls, constants: SamplerConstants, image: float | None = None, audio: float | None = None
    ) -> Guidance:
        """The bundle's scales, or constant ones in their place."""
        return cls(
            constants.image_guidance if image is None else (image, image),
            constants.audio_guidance if audio is None else (audio, audio),
        )


def evaluations_per_window(steps: Iterable[StepSettings]) -> int:
    """Guidance branches summed over all steps; the UNet's work is proportional to it."""
    return sum(len(step.branches) for step in steps)


def published_steps(
    count: int, constants: SamplerConstants, guidance: Guidance | None = None
) -> tuple[StepSettings, ...]:
    """The published sampler: a Karras schedule of `count` steps, all branches whose weight is not zero."""
    guidance = guidance or Guidance.of(constants)
    sigmas = karras_sigmas(count, constants)
    image_scales = guidance_scales(guidance.image, count)
    audio_scales = guidance_scales(guidance.audio, count)
    return tuple(
        StepSettings(
            float(sigmas[index]),
            float(sigmas[index + 1]),
            float(image_scales[index]),
            float(audio_scales[index]),
            needed_branches(image_scales[index], audio_scales[index]),
        )
        for index in range(count)
    )


def steps_at_levels(
    sigmas: Sequence[float], constants: SamplerConstants, guidance: Guidance | None = None
) -> tuple[StepSettings, ...]:
    """Steps at explicit, decreasing noise levels, with all branches."""
    return preset_steps(SpeedPreset(tuple(StepRule(float(sigma)) for sigma in sigmas)), constants, guidance)


def preset_steps(
    preset: SpeedPreset, constants: SamplerConstants, guidance: Guidance | None = None
) -> tuple[StepSettings, ...]:
    """The steps of a speed preset.

    A guidance scale that changes over the published schedule has, at each of the preset's levels, the value
    that it has there in the published one.
    """
    guidance = guidance or Guidance.of(constants)
    following = [*(rule.sigma for rule in preset.steps[1:]), 0.0]
    steps = []
    for rule, next_sigma in zip(preset.steps, following, strict=True):
        position = schedule_position(rule.sigma, constants)
        image = _between(guidance.image, position)
        audio = _between(guidance.audio, position) * preset.audio_guidance_factor
        evaluated = _evaluated(rule, image, audio, preset.reuses)
        steps.append(
            StepSettings(rule.sigma, next_sigma, image, audio, evaluated, rule.image_reuse, rule.audio_reuse)
        )
    return tuple(steps)


def _evaluated(rule: StepRule, image: float, audio: float, reuses: bool) -> tuple[int, ...]:
    """The branches of a rule that count at these guidance scales."""
    if rule.branches == ALL_BRANCHES and not reuses:
        return needed_branches(image, audio)
    # Branch 0 is there for the image's difference, branch 1 for either; a scale of 1 needs no difference.
    counts = {0: image != 1, 1: audio != 1 or (image != 1 and 0 in rule.branches), 2: True}
    return tuple(branch for branch in rule.branches if counts[branch])


def _between(first_last: tuple[float, float], position: float) -> float:
    first, last = first_last
    return first + position * (last - first)
