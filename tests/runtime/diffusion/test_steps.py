"""The steps of a clip: levels and guidance scales of the published schedule, presets, explicit levels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.bundle.constants import SamplerConstants
from sonic.bundle.presets import ALL_BRANCHES, UNTUNED, SpeedPreset, StepRule
from sonic.diffusion.schedule import karras_sigmas, schedule_position
from sonic.diffusion.steps import Guidance, preset_steps, published_steps, steps_at_levels

CONSTANTS = SamplerConstants()
CHANGING = SamplerConstants(image_guidance=(2.0, 3.0), audio_guidance=(7.5, 4.0))


@given(st.integers(2, 60))
def test_a_level_of_the_schedule_has_its_place(count: int) -> None:
    for index, sigma in enumerate(karras_sigmas(count, CONSTANTS)[:-1]):
        assert schedule_position(float(sigma), CONSTANTS) == pytest.approx(index / (count - 1), abs=1e-6)
    assert schedule_position(1e4, CONSTANTS) == 0 and schedule_position(1e-5, CONSTANTS) == 1


@given(st.lists(st.floats(1e-4, 1e4), min_size=2, max_size=9, unique=True))
def test_places_rise_as_noise_falls(levels: list[float]) -> None:
    places = [schedule_position(sigma, CONSTANTS) for sigma in sorted(levels, reverse=True)]
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= 1


@given(st.integers(2, 60))
def test_scales_that_change_keep_their_values_at_each_level(count: int) -> None:
    published = published_steps(count, CHANGING)
    levels = [step.sigma for step in published]
    for steps in (
        steps_at_levels(levels, CHANGING),
        preset_steps(SpeedPreset.at_levels(levels), CHANGING),
        # The other levels of a preset do not matter.
        preset_steps(SpeedPreset.at_levels(levels[::2]), CHANGING),
    ):
        by_level = {step.sigma: step for step in steps}
        for step in published:
            if step.sigma in by_level:
                same = by_level[step.sigma]
                assert same.image_scale == pytest.approx(step.image_scale, abs=1e-5)
                assert same.audio_scale == pytest.approx(step.audio_scale, abs=1e-5)


def test_scales_between_levels_are_between() -> None:
    (step,) = steps_at_levels([3.0], CHANGING)
    assert 2 < step.image_scale < 3 and 4 < step.audio_scale < 7.5
    place = schedule_position(3.0, CHANGING)
    assert step.image_scale == 2 + place and step.audio_scale == 7.5 - 3.5 * place


def test_every_step_ends_where_the_next_begins() -> None:
    for steps in (
        published_steps(9, CONSTANTS),
        steps_at_levels([9, 2, 0.5], CONSTANTS),
        *(preset_steps(preset, CONSTANTS) for preset in UNTUNED.presets.values()),
    ):
        assert [step.next_sigma for step in steps] == [*(step.sigma for step in steps[1:]), 0]
        assert all(isinstance(step.sigma, float) for step in steps)


def test_the_factor_multiplies_the_audio_scale_alone() -> None:
    rules = (StepRule(700.0), StepRule(1.0, (2,), audio_reuse=0.5))
    plain = preset_steps(SpeedPreset(rules), CHANGING)
    raised = preset_steps(SpeedPreset(rules, audio_guidance_factor=1.2), CHANGING)
    for before, after in zip(plain, raised, strict=True):
        assert after.audio_scale == pytest.approx(1.2 * before.audio_scale)
        assert after.image_scale == before.image_scale
    # The published sampler and explicit levels have no such factor.
    assert {step.audio_scale for step in published_steps(4, CONSTANTS)} == {7.5}


@pytest.mark.parametrize(("image", "audio"), [(None, None), (3.0, None), (None, 1.0), (0.0, 0.0)])
def test_explicit_scales_replace_the_bundles_at_every_level(image: float | None, audio: float | None) -> None:
    guidance = Guidance.of(CHANGING, image, audio)
    assert guidance.image == ((2.0, 3.0) if image is None else (image, image))
    assert guidance.audio == ((7.5, 4.0) if audio is None else (audio, audio))
    for steps in (
        published_steps(5, CHANGING, guidance),
        steps_at_levels([700, 3, 0.1], CHANGING, guidance),
        preset_steps(UNTUNED.presets["fast"], CHANGING, guidance),
    ):
        assert image is None or {step.image_scale for step in steps} == {image}
        assert audio is None or {step.audio_scale for step in steps} == {audio}


def test_the_published_steps_leave_out_what_has_no_weight() -> None:
    assert {step.branches for step in published_steps(3, CONSTANTS)} == {ALL_BRANCHES}
    crossing = Guidance((3.0, 1.0), (1.0, 3.0))  # equal in the middle
    branches = [step.branches for step in published_steps(3, CONSTANTS, crossing)]
    assert branches == [(0, 1, 2), (0, 2), (1, 2)]
    assert {step.branches for step in published_steps(3, CONSTANTS, Guidance((1, 1), (1, 1)))} == {(2,)}


def test_the_published_levels_are_float32() -> None:
    levels = [step.sigma for step in published_steps(25, CONSTANTS)]
    assert levels == [float(np.float32(level)) for level in levels]
    assert levels[0] == 700 and levels[-1] == pytest.approx(0.002)
