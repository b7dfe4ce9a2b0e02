"""The plan of a clip: what it says, and that a generation executes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import sonic
from sonic.bundle.constants import Constants, SamplerConstants
from sonic.cli.main import main
from sonic.diffusion.plan import DenoisingPlan, RingWindows, plan_denoising
from sonic.engines.watched import Call
from sonic.options import GenerationOptions, RunOptions
from sonic.plan import ClipPlan, ClipSize, plan_clip, plan_square_clip

CONSTANTS = Constants()


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


@given(
    st.integers(1, 400),
    st.integers(1, 30),
    st.sampled_from([1, 2, 3]),
    st.floats(0, 10),
    st.floats(0, 10),
)
def test_a_plan_survives_json(frames: int, steps: int, at_once: int, image: float, audio: float) -> None:
    constants = SamplerConstants(image_guidance=(image, 2.0), audio_guidance=(audio, 7.5))
    plan = plan_denoising(frames, steps, constants, at_once)
    assert DenoisingPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    for step in plan.steps:
        branches = [branch for call in step.calls for branch in call]
        assert branches == [branch for branch, weight in enumerate(step.weights) if weight]
        assert max(map(len, step.calls)) <= at_once
        assert sum(step.weights) == pytest.approx(1, abs=1e-5)
    assert plan.evaluation_count <= 3 * plan.window_count


def test_the_published_plan() -> None:
    plan = plan_denoising(60, 25, CONSTANTS.sampler, 3)
    assert [step.sigma for step in plan.steps[:2]] == pytest.approx([700, 545.7292], rel=1e-6)
    assert plan.steps[-1].next_sigma == 0
    assert plan.steps[3].windows[0][0] == (-21) % 60
    assert {step.calls for step in plan.steps} == {((0, 1, 2),)}
    assert plan.steps[0].weights == (-1.0, -5.5, 7.5)
    assert (plan.window_count, plan.call_count, plan.evaluation_count) == (75, 75, 225)
    apart = plan_denoising(60, 25, CONSTANTS.sampler, 1)
    assert (apart.call_count, apart.evaluation_count) == (225, 225)


def test_a_long_clip_has_a_plan_as_small_as_a_short_ones() -> None:
    hour = plan_clip(CONSTANTS, ClipSize(3600.0, 512, 512, 25))
    short = plan_clip(CONSTANTS, ClipSize(10.0, 512, 512, 25))
    assert hour.generated_frames == 45_000 and len(hour.denoising.steps[0].windows) == 1800
    assert abs(len(json.dumps(hour.to_json())) - len(json.dumps(short.to_json()))) < 200
    assert ClipPlan.from_json(json.loads(json.dumps(hour.to_json()))) == hour


@pytest.mark.parametrize("memory", sonic.options.MEMORY_MODES)
def test_a_generation_executes_its_plan(
    small, portrait: Path, long_mp3: Path, memory: sonic.options.MemoryMode
) -> None:
    model = sonic.load_model(small.bundle, memory=memory, threads=1, check_digests=False)
    calls: list[Call] = []
    video = model.generate(
        portrait, long_mp3, inference_steps=3, min_resolution=64, duration=2.5, observer=calls.append
    )
    _, height, width, _ = video.shape
    size = ClipSize(video.sound.duration_seconds, width, height, 3)
    plan = plan_clip(model.constants, size, RunOptions(memory=memory, threads=1))
    assert len(video) == plan.shown_frames
    seen = [call for call in calls if call.submodel == "unet"]
    expected = [
        (number, step.sigma, window, branches)
        for number, step in enumerate(plan.denoising.steps)
        for window in range(len(step.windows))
        for branches in step.calls
    ]
    found = [tuple(call.tags[name] for name in ("step", "sigma", "window", "branches")) for call in seen]
    assert found == expected
    assert all(len(call.inputs["sample"]) == len(call.tags["branches"]) for call in seen)


def test_square_clips_take_the_bundles_options() -> None:
    plan = plan_square_clip(CONSTANTS, GenerationOptions(duration=4.0))
    assert plan.size == ClipSize(4.0, 512, 512, 25) and plan.generated_frames == 50


def test_the_command_prints_and_writes_the_plan(small, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    command = ["plan", str(small.bundle), "--duration=6", "--steps=4", "--memory=low", f"--json={path}"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "75 frames denoised in 4 steps" in result.output and "frame_interpolator" in result.output
    manifest = sonic.load_model(small.bundle, check_digests=False).manifest
    options = GenerationOptions(duration=6.0, inference_steps=4)
    plan = plan_square_clip(manifest.constants, options, RunOptions(memory="low"))
    assert ClipPlan.from_json(json.loads(path.read_text())) == plan
    assert np.all([step.call_count == 9 for step in plan.denoising.steps])
