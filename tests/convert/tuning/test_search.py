"""The search of plans: against all plans of a few levels, and with differences whose multiples are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.bundle.presets import ALL_BRANCHES, BRANCH_SETS
from sonic_convert.tuning.search import GUIDANCE_WEIGHT, SIGMAS_DATA, PredictedPlan, search_plans
from sonic_convert.tuning.trajectory import Trajectory

SCALES = (2.0, 7.5)


def random_trajectory(levels: int, seed: int) -> Trajectory:
    generator = np.random.default_rng(seed)
    sigmas = np.append(np.sort(generator.uniform(0.01, 30, levels))[::-1], 0.0)

    def values(count: int) -> np.ndarray:
        return generator.standard_normal((count, 2, 4, 2, 2)).astype(np.float32)

    return Trajectory(
        sigmas,
        np.array([SCALES] * levels),
        values(levels + 1),
        values(levels),
        values(levels),
        values(levels),
    )


def predicted_error(
    clips: list[Trajectory], levels: list[int], branches: list[tuple[int, ...]], sigma_data: float
) -> float:
    """The error of one plan, step by step as the module describes it."""
    sigmas = clips[0].sigmas
    total = 0.0
    for position, level in enumerate(levels):
        end = levels[position + 1] if position + 1 < len(levels) else len(sigmas) - 1
        s, t = sigmas[level], sigmas[end]
        reach = 1 / (1 + (t / sigma_data) ** 2)
        lines = [clip.latents[level] + (t - s) * clip.derivatives[level] for clip in clips]
        total += reach * np.mean(
            [np.mean((clip.latents[end] - line) ** 2) for clip, line in zip(clips, lines, strict=True)]
        )
        for name, needed, scale in (
            ("image_differences", {0, 1}, SCALES[0]),
            ("audio_differences", {1, 2}, SCALES[1]),
        ):
            if needed <= set(branches[position]):
                continue
            wanted = np.concatenate([getattr(clip, name)[level].ravel() for clip in clips]).astype(float)
            left = wanted
            for earlier in range(position - 1, -1, -1):
                if needed <= set(branches[earlier]):
                    known = np.concatenate(
                        [getattr(clip, name)[levels[earlier]].ravel() for clip in clips]
                    ).astype(float)
                    left = wanted - known * np.linalg.lstsq(known[:, None], wanted, rcond=None)[0]
                    break
            gain = s**2 / (s**2 + 1) * (1 - t / s) ** 2 * reach
            total += GUIDANCE_WEIGHT * gain * (scale - 1) ** 2 * np.mean(left**2)
    return float(np.sqrt(total))


@pytest.mark.parametrize("seed", range(3))
def test_no_plan_of_four_levels_is_better(seed: int) -> None:
    clips = [random_trajectory(4, seed), random_trajectory(4, seed + 100)]
    clips[1] = Trajectory(
        clips[0].sigmas, clips[0].scales, *(getattr(clips[1], name) for name in
        ("latents", "derivatives", "image_differences", "audio_differences"))
    )  # fmt: skip
    plans = search_plans(clips, 12)
    for sigma_data in SIGMAS_DATA:
        _compare_with_all_plans(clips, plans, sigma_data)


def _compare_with_all_plans(
    clips: list[Trajectory], plans: list[tuple[PredictedPlan, ...]], sigma_data: float
) -> None:
    best: dict[int, float] = {}
    for count in range(1, 5):
        for rest in itertools.combinations(range(1, 4), count - 1):
            for branches in itertools.product(BRANCH_SETS, repeat=count):
                evaluations = sum(map(len, branches))
                error = predicted_error(clips, [0, *rest], list(branches), sigma_data)
                best[evaluations] = min(best.get(evaluations, np.inf), error)
    found = {alternatives[0].preset.evaluations: alternatives for alternatives in plans}
    levels = {sigma: level for level, sigma in enumerate(clips[0].sigmas)}
    smallest = np.inf
    for evaluations in sorted(best):
        if best[evaluations] < smallest * (1 - 1e-6):
            errors = [
                predicted_error(
                    clips,
                    [levels[step.sigma] for step in plan.preset.steps],
                    [step.branches for step in plan.preset.steps],
                    sigma_data,
                )
                for plan in found[evaluations]
            ]
            assert min(errors) == pytest.approx(best[evaluations], rel=1e-4)
        smallest = min(smallest, best[evaluations])


def test_multiples_of_reused_differences_are_found() -> None:
    clip = random_trajectory(3, 5)
    image, audio = clip.image_differences.copy(), clip.audio_differences.copy()
    for level, (of_image, of_audio) in enumerate(((1, 1), (0.5, -2), (0.25, 3))):
        image[level], audio[level] = of_image * image[0], of_audio * audio[0]
    # A straight line through all levels misses nothing where the latents follow it.
    derivative = np.broadcast_to(clip.derivatives[0], clip.derivatives.shape)
    steps = (clip.sigmas - clip.sigmas[0]).astype(np.float32)[:, None, None, None, None]
    latents = clip.latents[0] + steps * derivative[0]
    bent = latents + np.array([0, 1, -1, 1], np.float32)[:, None, None, None, None]  # every level is needed
    derivative = np.diff(bent, axis=0) / np.diff(clip.sigmas).astype(np.float32)[:, None, None, None, None]
    known = Trajectory(clip.sigmas, clip.scales, bent, derivative, image, audio)
    plan = next(plan for plan, *_ in search_plans([known], 9) if plan.preset.evaluations == 5)
    first, second, third = plan.preset.steps
    assert first.branches == ALL_BRANCHES and second.branches == third.branches == (2,)
    assert (second.image_reuse, second.audio_reuse) == pytest.approx((0.5, -2), abs=1e-3)
    assert (third.image_reuse, third.audio_reuse) == pytest.approx((0.25, 3), abs=1e-3)
    assert plan.predicted_error == pytest.approx(0, abs=1e-2)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(0, 1000), st.integers(1, 15))
def test_dearer_plans_are_better_and_all_are_valid(levels: int, seed: int, most: int) -> None:
    clip = random_trajectory(levels, seed)
    plans = search_plans([clip], most)
    costs = [plan.preset.evaluations for plan, *_ in plans]
    assert costs == sorted(set(costs)) and costs[0] >= 1 and costs[-1] <= most
    for plan in itertools.chain.from_iterable(plans):
        assert plan.preset.steps[0].sigma == clip.sigmas[0]
        assert {step.sigma for step in plan.preset.steps} <= set(clip.sigmas)
