"""Speed presets: which noise levels and guidance branches a clip is denoised with, as data in a manifest.

    presets = manifest.speeds
    presets.default                             # "exact", until the bundle is tuned
    presets.presets["fast"].evaluations         # 18 in a bundle that was not tuned; "exact" has 75

"exact" is the published sampler, and no entry of its own. The others are found by `sonic-convert tune`; a
bundle that was not tuned has those of `UNTUNED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from sonic.bundle.constants import GUIDANCE_BRANCHES
from sonic.records import TOLERANT

SpeedName = Literal["exact", "balanced", "fast", "fastest"]
SPEED_NAMES: tuple[SpeedName, ...] = get_args(SpeedName)
EXACT_SPEED: SpeedName = "exact"
#: Those that are presets of a bundle, from the slowest to the fastest.
PRESET_NAMES: tuple[SpeedName, ...] = tuple(name for name in SPEED_NAMES if name != EXACT_SPEED)
ALL_BRANCHES = tuple(range(GUIDANCE_BRANCHES))
#: The sets of branches that a step may evaluate: the last branch always, and those that a difference needs.
BRANCH_SETS = ((2,), (1, 2), ALL_BRANCHES)

_MINIMUM_PSNR_DB = "golden_clip_minimum_psnr_db"
_MOST_STEPS = 1000  # as in a clip's options
_Positive = Annotated[float, Field(gt=0, le=1e5)]
_Multiple = Annotated[float, Field(ge=-1e3, le=1e3)]


def decrease(sigmas: Sequence[float]) -> bool:
    """Whether noise levels are those of a denoising: at least one, each below the one before."""
    return bool(sigmas) and all(high > low for high, low in pairwise(sigmas))


@dataclass(frozen=True)
class StepRule:
    """One denoising step of a preset.

    Guidance is the prediction with image and audio, plus multiples of two differences: that of audio (branch
    2 less branch 1) and that of the image (branch 1 less branch 0). A step that does not evaluate the
    branches of a difference uses a multiple of the one that was evaluated last, for the same frames.

    Attributes:
        sigma: the noise level before the step; the next step's is the one after it.
        branches: the guidance branches that are evaluated, one of `BRANCH_SETS`.
        image_reuse, audio_reuse: the multiple, where the difference is not evaluated; 0 leaves it out.
    """

    __pydantic_config__ = TOLERANT

    sigma: _Positive
    branches: tuple[int, ...] = ALL_BRANCHES
    image_reuse: _Multiple = 0.0
    audio_reuse: _Multiple = 0.0

    def __post_init__(self) -> None:
        """Check the branches.

        Raises:
            ValueError: no step may evaluate these.
        """
        if self.branches not in BRANCH_SETS:
            raise ValueError(f"the branches {list(self.branches)} should be one of {list(BRANCH_SETS)}")


@dataclass(frozen=True)
class SpeedPreset:
    """How a clip is denoised.

    Attributes:
        steps: in order, from the highest noise level; the last one ends at zero.
        audio_guidance_factor: multiplies the audio guidance scale, for what shortcuts take from the mouth.
    """

    __pydantic_config__ = TOLERANT

    steps: tuple[StepRule, ...]
    audio_guidance_factor: _Positive = 1.0

    def __post_init__(self) -> None:
        """Check the steps.

        Raises:
            ValueError: there are none, or their noise levels do not decrease.
        """
        if len(self.steps) > _MOST_STEPS:
            raise ValueError(f"a preset has {len(self.steps)} steps, but should have at most {_MOST_STEPS}")
        if not decrease([step.sigma for step in self.steps]):
            raise ValueError("the noise levels of a preset's steps should decrease, and be at least one")

    @property
    def evaluations(self) -> int:
        """How often the UNet is evaluated for each window, summed over the guidance branches."""
        return sum(len(step.branches) for step in self.steps)

    @property
    def guides_audio(self) -> bool:
        """Whether any step evaluates the audio's difference, so that its guidance scale has an effect."""
        return any(1 in step.branches for step in self.steps)

    @property
    def reuses(self) -> bool:
        """Whether a step uses a multiple of an earlier difference."""
        return any(step.image_reuse or step.audio_reuse for step in self.steps)

    @classmethod
    def at_levels(
        cls, sigmas: Sequence[float], fully_above: float = 0.0, fully_below: float = float("inf")
    ) -> SpeedPreset:
        """Steps at `sigmas` that evaluate all branches within a range of noise, bounds included.

        Outside it, they evaluate only the branch with image and audio.
        """
        return cls(
            tuple(
                StepRule(sigma, ALL_BRANCHES if fully_above <= sigma <= fully_below else BRANCH_SETS[0])
                for sigma in sigmas
            )
        )


@dataclass(frozen=True)
class SpeedPresets:
    """All presets of a bundle.

    Attributes:
        default: the preset of clips for which none is chosen.
        presets: by name; "exact" is not among them.
        tuning: what `sonic-convert tune` measured; empty in a bundle that was not tuned. Where it holds
            "golden_clip_minimum_psnr_db", an object of dB by preset, `sonic verify --speed` checks them.
    """

    __pydantic_config__ = TOLERANT

    default: SpeedName
    presets: dict[SpeedName, SpeedPreset]
    tuning: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that every preset is there.

        Raises:
            ValueError: one is missing, "exact" is among them, or a bound of the tuning is no number.
        """
        if set(self.presets) != set(PRESET_NAMES):
            raise ValueError(
                f"'presets' should hold {', '.join(PRESET_NAMES)}, but holds {', '.join(self.presets)}"
            )
        bounds = self.tuning.get(_MINIMUM_PSNR_DB, {})
        if not isinstance(bounds, dict) or not all(
            isinstance(bound, int | float) for bound in bounds.values()
        ):
            raise ValueError(f"'{_MINIMUM_PSNR_DB}' should hold numbers (dB) by preset, but is {bounds!r}")

    @property
    def tuned(self) -> bool:
        """Whether the presets were found for this bundle."""
        return bool(self.tuning)

    def golden_clip_minimum_psnr_db(self, speed: SpeedName) -> float | None:
        """The lowest PSNR of the golden clip against "exact" that passes; None if the tuning states none."""
        minimum = self.tuning.get(_MINIMUM_PSNR_DB, {}).get(speed)
        return None if minimum is None else float(minimum)

    def to_json(self) -> dict[str, Any]:
        """The entry of ``manifest.json``."""
        return asdict(self)


# "Align Your Steps" (Sabour et al., 2024), table 3, the schedule for Stable Video Diffusion, at eight steps.
_ALIGNED_LEVELS = (700.0, 32.1327, 8.80195, 3.31801, 1.16473, 0.357141, 0.06828, 0.002)
# Six levels that kept an SSIM of 0.995 to 25 steps at the published guidance scales.
_SIX_LEVELS = (700.0, 12.0, 4.0, 1.4, 0.45, 0.1)

#: Presets for a bundle that was not tuned. They are conservative: its own may need fewer evaluations.
UNTUNED = SpeedPresets(
    EXACT_SPEED,
    {
        "balanced": SpeedPreset.at_levels(_ALIGNED_LEVELS),
        "fast": SpeedPreset.at_levels(_SIX_LEVELS),
        "fastest": SpeedPreset.at_levels(_SIX_LEVELS, fully_above=0.4),
    },
)
