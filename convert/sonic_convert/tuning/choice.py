"""Chooses among the plans of a search by their videos: the cheapest within a budget of quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sonic.bundle.presets import SpeedName, SpeedPreset
from sonic.errors import InputError
from sonic_convert.tuning.budget import Measures, QualityBudget
from sonic_convert.tuning.search import PredictedPlan

#: How much of a budget plans may use up on the clips that they are chosen by: others turn out a little worse.
BUDGET_SHARE = 0.8
_LARGEST_FACTOR_CHANGE = 1.5  # of the audio guidance, to restore the mouth's amplitude


@dataclass(frozen=True)
class Candidate:
    """A plan that was generated and judged.

    Attributes:
        preset: the plan.
        predicted_error: of the search.
        clips: its measures, by clip.
    """

    preset: SpeedPreset
    predicted_error: float
    clips: tuple[Measures, ...]

    @property
    def mean(self) -> Measures:
        """The mean over the clips."""
        return Measures.mean(self.clips)


Judge = Callable[[PredictedPlan], Candidate]


class PlanChoice:
    """Chooses the cheapest plan that keeps a budget, judging as few as possible.

    Plans with more evaluations are taken to be better, so that bisection finds the border.
    """

    def __init__(self, plans: Sequence[tuple[PredictedPlan, ...]], judge: Judge) -> None:
        self._plans, self._judge = plans, judge

    def cheapest(self, name: SpeedName, budget: QualityBudget, at_least_evaluations: int = 0) -> Candidate:
        """The cheapest plan, with at least so many evaluations, that keeps the budget on the tuned clips.

        Raises:
            InputError: none does.
        """
        first = next(
            (
                i
                for i, (plan, *_) in enumerate(self._plans)
                if plan.preset.evaluations >= at_least_evaluations
            ),
            len(self._plans),
        )
        low, high = first - 1, len(self._plans)
        found: Candidate | None = None
        last: Candidate | None = None
        # Gallop upwards from the cheapest, as most presets are far below the most evaluations.
        tried, stride = first + 2, 2
        while high - low > 1:
            index = min(tried, high - 1) if found is None else (low + high) // 2
            candidate = self._kept(self._plans[index], budget)
            last = self._judge(self._plans[index][0])
            if candidate is not None:
                found, high = candidate, index
            else:
                low = index
                tried, stride = index + stride, 2 * stride
        if found is None:
            raise InputError(_no_plan(name, budget, last))
        return found

    def _kept(self, alternatives: Sequence[PredictedPlan], budget: QualityBudget) -> Candidate | None:
        """The first plan that keeps the budget, as it is or with another audio guidance, if any does."""
        for plan in alternatives:
            candidate = self._judge(plan)
            broken = budget.broken(candidate.mean, BUDGET_SHARE)
            if broken == ["amplitude"] and plan.preset.guides_audio:
                factor = _compensating_factor(candidate.mean.mouth)
                preset = replace(plan.preset, audio_guidance_factor=factor)
                candidate = self._judge(replace(plan, preset=preset))
                broken = budget.broken(candidate.mean, BUDGET_SHARE)
            if not broken:
                return candidate
        return None


def _compensating_factor(mouth: float) -> float:
    """What to multiply the audio guidance by, for a mouth that moves `mouth` times as much as it should.

    The amplitude follows the scale more weakly than in proportion, so the factor is the square.
    """
    factor = min(max(mouth**-2, 1 / _LARGEST_FACTOR_CHANGE), _LARGEST_FACTOR_CHANGE)
    return round(factor, 3)


def _no_plan(name: SpeedName, budget: QualityBudget, best: Candidate | None) -> str:
    if best is None:
        return f"no plan has as many evaluations as '{name}' would need; loosen its budget ({budget})"
    broken = budget.broken(best.mean, BUDGET_SHARE)
    reached = ", ".join(f"{limit}={getattr(best.mean, limit):.3g}" for limit in broken)
    return (
        f"no plan keeps the budget of '{name}' ({budget}): with {best.preset.evaluations} evaluations a "
        f"window it has {reached}, and {BUDGET_SHARE:.0%} of a limit may be used up; nothing was written. "
        f"Loosen it with --budget {name}:..."
    )
