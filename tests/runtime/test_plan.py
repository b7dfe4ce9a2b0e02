"""The plan of a clip: what it says, and that a generation executes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import sonic
from sonic.bundle.constants import Constants, SamplerConstants
from sonic.bundle.manifest import Manifest
from sonic.bundle.presets import BRANCH_SETS, UNTUNED, SpeedPreset, StepRule
from sonic.bundle.store import PACKAGED_BUNDLES, open_bundle
from sonic.cli.main import main
from sonic.diffusion.plan import DenoisingPlan, RingWindows, plan_denoising
from sonic.diffusion.steps import preset_steps, published_steps
from sonic.engines.watched import Call
from sonic.options import GenerationOptions
from sonic.plan import ClipPlan, ClipSize, denoising_steps, plan_clip, plan_square_clip

CONSTANTS = Constants()
PUBLISHED = published_steps(25, CONSTANTS.sampler)


@pytest.fixture(scope="module")
def tiny() -> Manifest:
    manifest = open_bundle(PACKAGED_BUNDLES / "sonic-tiny", check_digests=False).manifest
    return replace(manifest, speeds=UNTUNED)


def step_rules() -> st.SearchStrategy[list[StepRule]]:
    """Steps at decreasing levels, with any branches and multiples."""
    multiples = st.sampled_from([0.0, 0.5, 1.0])
    rules = st.tuples(st.sampled_from(BRANCH_SETS), multiples, multiples)
    return st.lists(rules, min_size=1, max_size=6).map(
        lambda drawn: [StepRule(700.0 / 7**number, *rule) for number, rule in enumerate(drawn)]
    )


@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 30), st.integers(0, 500))
def test_windows_are_the_slices_of_a_ring(frames: int, length: int, stride: int, shift: int) -> None:
    windows = RingWindows(frames, length, stride, shift)
    assert len(windows) == len(list(windows)) == -(-frames // stride)
    for number, window in enumerate(windows):
        expected = [(number * stride - shift + offset) % frames for offset in range(length)]
        assert window.tolist() == expected == windows[number].tolist()
    assert [w.tolist() for w in windows[-2:]] == [w.tolist() for w in list(windows)[-2:]]
    with pytest.raises(IndexError):
        windows[len(windows)]


@given(st.integers(1, 400), st.integers(1, 30), st.floats(0, 10), st.floats(0, 10))
def test_a_plan_survives_json(frames: int, steps: int, image: float, audio: float) -> None:
    constants = SamplerConstants(image_guidance=(image, 2.0), audio_guidance=(audio, 7.5))
    plan = plan_denoising(frames, published_steps(steps, constants), constants)
    assert DenoisingPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert len(plan.steps) == steps
    for step in plan.steps:
        assert list(step.branches) == [branch for branch, weight in enumerate(step.weights) if weight]
        assert step.call_count == len(step.windows) * len(step.branches)
        assert sum(step.weights) == pytest.approx(1, abs=1e-5)
    assert plan.call_count <= 3 * plan.window_count
    assert plan.evaluations_per_window == sum(len(step.branches) for step in plan.steps)
    assert not plan.keeps_image and not plan.keeps_audio  # the published sampler reuses nothing


@given(st.integers(1, 400), step_rules())
def test_a_presets_plan_survives_json_and_keeps_what_is_reused(frames: int, rules: list[StepRule]) -> None:
    sampler = CONSTANTS.sampler
    plan = plan_denoising(frames, preset_steps(SpeedPreset(tuple(rules)), sampler), sampler)
    assert DenoisingPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert [step.branches for step in plan.steps] == [rule.branches for rule in rules]
    # Obviously: forget nothing, and note which step's difference every multiple takes.
    for needed, multiple, kept in (
        ({0, 1}, "image_reuse", "keeps_image"),
        ({1, 2}, "audio_reuse", "keeps_audio"),
    ):
        sources, last = set(), None
        for number, rule in enumerate(rules):
            if needed <= set(rule.branches):
                last = number
            elif getattr(rule, multiple) and last is not None:
                sources.add(last)
        assert {number for number, step in enumerate(plan.steps) if getattr(step, kept)} == sources
        assert getattr(plan, kept) == bool(sources)


def test_the_published_plan() -> None:
    plan = plan_denoising(60, PUBLISHED, CONSTANTS.sampler)
    assert [step.sigma for step in plan.steps[:2]] == pytest.approx([700, 545.7292], rel=1e-6)
    assert plan.steps[-1].next_sigma == 0
    assert plan.steps[3].windows[0][0] == (-21) % 60
    assert {step.branches for step in plan.steps} == {(0, 1, 2)}
    assert plan.steps[0].weights == (-1.0, -5.5, 7.5)
    assert (plan.window_count, plan.call_count, plan.evaluations_per_window) == (75, 225, 75)


def test_a_long_clip_has_a_plan_as_small_as_a_short_ones() -> None:
    hour = plan_clip(CONSTANTS, ClipSize(3600.0, 512, 512), PUBLISHED)
    short = plan_clip(CONSTANTS, ClipSize(10.0, 512, 512), PUBLISHED)
    assert hour.generated_frames == 45_000 and len(hour.denoising.steps[0].windows) == 1800
    assert abs(len(json.dumps(hour.to_json())) - len(json.dumps(short.to_json()))) < 200
    assert ClipPlan.from_json(json.loads(json.dumps(hour.to_json()))) == hour


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(inference_steps=3),
        GenerationOptions(speed="fastest"),
        GenerationOptions(sigmas=(700.0, 5.0, 0.5), image_guidance=1.0),
    ],
    ids=["steps", "speed", "sigmas"],
)
@pytest.mark.parametrize("memory", sonic.options.MEMORY_MODES)
def test_a_generation_executes_its_plan(
    small, portrait: Path, long_mp3: Path, memory: sonic.options.MemoryMode, options: GenerationOptions
) -> None:
    model = sonic.load_model(small.bundle, memory=memory, threads=1, check_digests=False)
    calls: list[Call] = []
    chosen = {
        name: getattr(options, name) for name in ("inference_steps", "speed", "sigmas", "image_guidance")
    }
    video = model.generate(
        portrait, long_mp3, **chosen, min_resolution=64, duration=2.5, observer=calls.append
    )
    _, height, width, _ = video.shape
    size = ClipSize(video.sound.duration_seconds, width, height)
    plan = plan_clip(model.constants, size, denoising_steps(model.manifest, options))
    assert len(video) == plan.shown_frames
    seen = [call for call in calls if call.submodel == "unet"]
    expected = [
        (number, step.sigma, window, (branch,))
        for number, step in enumerate(plan.denoising.steps)
        for window in range(len(step.windows))
        for branch in step.branches
    ]
    found = [tuple(call.tags[name] for name in ("step", "sigma", "window", "branches")) for call in seen]
    assert found == expected
    assert all(len(call.inputs["sample"]) == 1 for call in seen)
    (calls_of_unet,) = (calls for calls in plan.submodel_calls if calls.submodel == "unet")
    assert calls_of_unet.count == len(seen) and calls_of_unet.sizes["batch"] == 1


def test_square_clips_take_the_bundles_options(tiny: Manifest) -> None:
    manifest = replace(tiny, constants=CONSTANTS)
    plan = plan_square_clip(manifest, GenerationOptions(duration=4.0))
    assert plan.size == ClipSize(4.0, 512, 512) and plan.generated_frames == 50
    assert len(plan.denoising.steps) == 25
    fast = replace(manifest, speeds=replace(manifest.speeds, default="fast"))
    assert len(plan_square_clip(fast, GenerationOptions(duration=4.0)).denoising.steps) == 6


def test_options_choose_the_steps(tiny: Manifest) -> None:
    """Noise levels come before steps, steps before a preset, a preset before the bundle's default."""
    fast = replace(tiny, speeds=replace(tiny.speeds, default="fast"))
    published = tiny.constants.sampler.steps

    def levels(manifest: Manifest, **options: object) -> list[float]:
        return [step.sigma for step in denoising_steps(manifest, GenerationOptions(**options))]

    of = {name: [rule.sigma for rule in preset.steps] for name, preset in tiny.speeds.presets.items()}
    assert len(levels(tiny)) == len(levels(fast, speed="exact")) == published
    assert levels(fast) == of["fast"] and levels(fast, speed="balanced") == of["balanced"]
    for manifest in (tiny, fast):
        assert len(levels(manifest, inference_steps=4)) == 4
        assert levels(manifest, inference_steps=4, speed="balanced") == levels(tiny, inference_steps=4)
        assert levels(manifest, sigmas=(9.0, 1.0), speed="balanced") == [9.0, 1.0]
        assert levels(manifest, sigmas=(9.0, 1.0), inference_steps=4) == [9.0, 1.0]
    for step in denoising_steps(fast, GenerationOptions(image_guidance=3, audio_guidance=1)):
        assert (step.image_scale, step.audio_scale) == (3, 1)


def test_the_command_prints_and_writes_the_plan(small, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    command = ["plan", str(small.bundle), "--duration=6", "--steps=4", f"--json={path}"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "75 frames denoised in 4 steps" in result.output and "frame_interpolator" in result.output
    manifest = sonic.load_model(small.bundle, check_digests=False).manifest
    options = GenerationOptions(duration=6.0, inference_steps=4)
    plan = plan_square_clip(manifest, options)
    assert ClipPlan.from_json(json.loads(path.read_text())) == plan
    assert np.all([step.call_count == 9 for step in plan.denoising.steps])
