"""Presets, noise levels and guidance scales: the same clip from every surface, and one-sentence errors."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import sonic
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.presets import SPEED_NAMES
from sonic.cli.main import main
from sonic.diffusion.schedule import karras_sigmas
from sonic.engines.watched import Call
from sonic.options import GenerationOptions
from sonic.plan import denoising_steps
from sonic_calibration.recording.examples import Example, generate_example
from sonic_calibration.recording.recordings import RecordingOptions, record
from sonic_convert.bundle_writer import write_manifest
from sonic_convert.cli.main import main as convert_main

PUBLISHED = 3  # steps of "exact", to be quick


@pytest.fixture(scope="module")
def fast_bundle(small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle with "fastest" as its default, as tuning would leave it; "exact" has few steps."""
    bundle = Path(shutil.copytree(small.bundle, tmp_path_factory.mktemp("fast") / "bundle"))
    manifest = read_manifest(bundle)
    speeds = replace(manifest.speeds, default="fastest", tuning={"golden_clip_minimum_psnr_db": {}})
    constants = manifest.constants
    constants = replace(constants, sampler=replace(constants.sampler, steps=PUBLISHED))
    write_manifest(bundle, replace(manifest, speeds=speeds, constants=constants))
    return bundle


def levels_of(calls: list[Call]) -> list[float]:
    """The noise levels of a clip's calls of the UNet, in order."""
    found = Counter(call.tags["sigma"] for call in calls if call.submodel == "unet")
    return list(found)


def generate(
    model: sonic.SonicModel, image: Path, audio: Path, **options: Any
) -> tuple[np.ndarray, list[float]]:
    calls: list[Call] = []
    video = model.generate(image, audio, min_resolution=64, observer=calls.append, **options)
    return np.asarray(video), levels_of(calls)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "speed": ({"speed": "fast"}, ["--speed=fast"]),
    "levels": ({"sigmas": [700, 8.5, 0.5]}, ["--sigmas=700,8.5,0.5"]),
    "guidance": (
        {"steps": 2, "image_guidance": 1.0, "audio_guidance": 3},
        ["--steps=2", "--image-guidance=1", "--audio-guidance=3"],
    ),
    "steps before a speed": ({"steps": 2, "speed": "fast"}, ["--steps=2", "--speed=fast"]),
}


@pytest.mark.parametrize("case", CASES)
def test_every_surface_makes_the_same_clip(
    case: str, small, model: sonic.SonicModel, portrait: Path, short_wav: Path, tmp_path: Path
) -> None:
    options, flags = CASES[case]
    given = {{"steps": "inference_steps"}.get(name, name): value for name, value in options.items()}
    video = model.generate(portrait, short_wav, min_resolution=64, **given)
    common = [f"--image={portrait}", f"--audio={short_wav}", "--resolution=64"]
    result = run("generate", f"--bundle={small.bundle}", f"--output={tmp_path / 'a.mp4'}", *common, *flags)
    assert result.exit_code == 0, result.output
    line = {"image": str(portrait), "audio": str(short_wav), "output": "b.mp4", "resolution": 64} | options
    (tmp_path / "jobs.jsonl").write_text(json.dumps(line))
    result = run("batch", tmp_path / "jobs.jsonl", f"--bundle={small.bundle}")
    assert result.exit_code == 0, result.output
    rate = model.constants.video.h264_constant_rate_factor
    sonic.save_video(video, tmp_path / "c.mp4", constant_rate_factor=rate)
    expected = (tmp_path / "c.mp4").read_bytes()
    assert (tmp_path / "a.mp4").read_bytes() == expected
    assert (tmp_path / "b.mp4").read_bytes() == expected


def test_published_levels_and_exact_are_the_same_bytes(
    model: sonic.SonicModel, portrait: Path, short_wav: Path
) -> None:
    sampler = model.constants.sampler
    levels = tuple(float(sigma) for sigma in karras_sigmas(3, sampler)[:-1])
    exact, found = generate(model, portrait, short_wav, inference_steps=3)
    assert found == list(levels)
    by_levels, _ = generate(model, portrait, short_wav, sigmas=levels)
    np.testing.assert_array_equal(by_levels, exact)
    other, _ = generate(model, portrait, short_wav, sigmas=levels, audio_guidance=0)
    assert not np.array_equal(other, exact)


def test_the_bundles_default_is_used_unless_something_else_is_asked_for(
    fast_bundle: Path, model: sonic.SonicModel, portrait: Path, short_wav: Path
) -> None:
    fast = sonic.load_model(fast_bundle)
    fastest = [step.sigma for step in fast.manifest.speeds.presets["fastest"].steps]
    by_default, levels = generate(fast, portrait, short_wav)
    assert levels == fastest
    asked, levels = generate(model, portrait, short_wav, speed="fastest")
    assert levels == fastest
    np.testing.assert_array_equal(by_default, asked)
    for options in ({"inference_steps": 2}, {"speed": "exact"}):
        one, levels = generate(fast, portrait, short_wav, **options)
        count = options.get("inference_steps", PUBLISHED)
        other, _ = generate(model, portrait, short_wav, inference_steps=count)
        np.testing.assert_array_equal(one, other)
        assert len(levels) == count
    (result,) = fast.generate_many([{"image": portrait, "audio": short_wav, "min_resolution": 64}])
    np.testing.assert_array_equal(np.asarray(result.video), by_default)


def test_examples_are_exact_unless_asked(
    fast_bundle: Path, portrait: Path, short_wav: Path, tmp_path: Path
) -> None:
    model, example = sonic.load_model(fast_bundle), Example(portrait, short_wav)
    for options, count in (
        (GenerationOptions(min_resolution=64, duration=0.2), PUBLISHED),
        (GenerationOptions(min_resolution=64, duration=0.2, speed="fast"), 6),
    ):
        calls: list[Call] = []
        generate_example(model, example, options, calls.append)
        assert len(levels_of(calls)) == count
    recorded = record(
        fast_bundle,
        [example],
        tmp_path / "r",
        RecordingOptions(100, clip=GenerationOptions(min_resolution=64, duration=0.2)),
        ("unet",),
    )
    assert len({sample.tags["sigma"] for sample in recorded.samples("unet")}) == PUBLISHED


def test_verify_is_exact_and_a_preset_is_compared_in_addition(fast_bundle: Path, tmp_path: Path) -> None:
    result = run("verify", fast_bundle, "--json", tmp_path / "exact.json")
    assert result.exit_code == 0, result.output
    exact = json.loads((tmp_path / "exact.json").read_text())
    assert exact["preset"] is None and exact["steps"] == 3 and "fastest" not in result.output
    result = run("verify", fast_bundle, "--speed=fast", "--json", tmp_path / "fast.json")
    assert result.exit_code == 0, result.output
    fast = json.loads((tmp_path / "fast.json").read_text())
    assert fast["clip"] == exact["clip"] and fast["submodels"] == exact["submodels"]
    preset = fast["preset"]
    assert (preset["speed"], preset["evaluations"], preset["published_evaluations"]) == ("fast", 18, 9)
    assert preset["minimum_psnr_db"] is None and preset["passed"] and fast["passed"]
    assert 10 < preset["worst_psnr_db"] <= preset["psnr_db"] < 100
    assert "'fast' (18 evaluations a window)" in " ".join(result.output.split())
    assert "FAILED" not in result.output


@pytest.mark.parametrize(("bound", "code"), [(1.0, 0), (99.0, 1)])
def test_a_bound_of_the_tuning_decides(fast_bundle: Path, tmp_path: Path, bound: float, code: int) -> None:
    bundle = Path(shutil.copytree(fast_bundle, tmp_path / "bundle"))
    manifest = read_manifest(bundle)
    speeds = replace(manifest.speeds, tuning={"golden_clip_minimum_psnr_db": {"fastest": bound}})
    write_manifest(bundle, replace(manifest, speeds=speeds))
    result = run("verify", bundle, "--speed=fastest", "--json", tmp_path / "v.json")
    assert result.exit_code == code, (result.output, result.exception)
    numbers = json.loads((tmp_path / "v.json").read_text())
    assert numbers["clip"]["passed"] and numbers["preset"]["minimum_psnr_db"] == bound
    assert numbers["preset"]["passed"] == numbers["passed"] == (code == 0)
    assert f">= {bound:.1f} dB" in result.output and ("FAILED" in result.output) == bool(code)


def test_parity_is_exact_whatever_the_default(
    small, fast_bundle: Path, portrait: Path, short_wav: Path
) -> None:
    from sonic_convert.parity.parity import measure_parity

    options = GenerationOptions(
        min_resolution=64, inference_steps=2, image_guidance=1.0, audio_guidance=3.0, sigmas=(700.0, 1.0)
    )
    report = measure_parity(small.checkpoint, fast_bundle, portrait, short_wav, options)
    assert report.passed and report.steps == 2
    for command in ("parity", "reference"):
        help_text = CliRunner().invoke(convert_main, [command, "--help"]).output
        assert "--steps" in help_text and "--image-guidance" in help_text
        assert "--speed" not in help_text and "--sigmas" not in help_text


@pytest.mark.parametrize("command", ["compare", "calibrate", "quantize", "sensitivity"])
def test_commands_that_compare_bundles_are_exact_unless_asked(command: str) -> None:
    options = next(c for c in convert_main.commands.values() if c.name == command).params
    (speed,) = (option for option in options if option.name == "speed")
    assert speed.default == "exact" and list(speed.type.choices) == list(SPEED_NAMES)


def test_plan_and_estimate_follow_the_speed(fast_bundle: Path, small, tmp_path: Path) -> None:
    def plan(bundle: Path, *flags: str) -> dict[str, Any]:
        result = run("plan", bundle, "--duration=2", f"--json={tmp_path / 'plan.json'}", *flags)
        assert result.exit_code == 0, result.output
        values: dict[str, Any] = json.loads((tmp_path / "plan.json").read_text())
        steps = values["denoising"]["steps"]
        count = sum(len(step["branches"]) for step in steps)
        assert f"in {len(steps)} steps, {count} evaluations a window" in result.output
        return values["denoising"]

    assert len(plan(small.bundle)["steps"]) == 25 and len(plan(fast_bundle)["steps"]) == 6
    assert len(plan(fast_bundle, "--speed=exact")["steps"]) == PUBLISHED
    assert len(plan(fast_bundle, "--speed=balanced")["steps"]) == 8
    levels = plan(small.bundle, "--sigmas=9,1", "--image-guidance=1")["steps"]
    assert [(step["sigma"], step["branches"]) for step in levels] == [(9.0, [1, 2]), (1.0, [1, 2])]

    def unet_share(bundle: Path, *flags: str) -> float:
        result = run("estimate", bundle, "--duration=10", "--machine=kunpeng920", *flags)
        assert result.exit_code == 0, result.output
        (line,) = (row for row in result.output.splitlines() if row.strip().startswith("unet"))
        return float(line.split()[1].replace(",", ""))  # the first column: "exact", or what was asked for

    exact = unet_share(small.bundle)
    for name in SPEED_NAMES:
        steps = denoising_steps(read_manifest(small.bundle), GenerationOptions(speed=name))
        expected = exact * sum(len(step.branches) for step in steps) / 75
        assert unet_share(small.bundle, f"--speed={name}") == pytest.approx(expected, rel=1e-3)
    assert unet_share(fast_bundle, "--speed=fastest") == unet_share(small.bundle, "--speed=fastest")


def test_info_shows_the_presets(small, fast_bundle: Path) -> None:
    shown = run("info", small.bundle).output
    assert "speed presets (not tuned)" in shown and "exact (default)" in shown
    rows = {row.split()[1]: row for row in shown.splitlines() if any(f" {n} " in row for n in SPEED_NAMES)}
    assert "25" in rows["exact"] and "75" in rows["exact"] and "700" in rows["exact"]
    assert "700, 12, 4, 1.4, 0.45, 0.1" in rows["fast"] and "18" in rows["fast"]
    assert "3, 3, 3, 3, 3, 1" in rows["fastest"] and "16" in rows["fastest"]
    shown = run("info", fast_bundle).output
    assert "speed presets (tuned for this bundle)" in shown and "fastest (default)" in shown


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--sigmas=3,4", "error: sigmas is (3.0, 4.0), but should be noise levels above zero that decrease"),
        ("--sigmas=3,0", "sigmas is (3.0, 0.0), but should be noise levels above zero that decrease"),
        ("--sigmas=nan", "sigmas is (nan,), but should be noise levels above zero that decrease"),
        ("--sigmas=a,b", "'--sigmas': 'a,b' should be numbers separated by commas"),
        ("--sigmas=", "'--sigmas': '' should be numbers separated by commas"),
        ("--speed=quick", "'--speed': 'quick' is not one of 'exact', 'balanced', 'fast', 'fastest'"),
        ("--image-guidance=-1", "error: image_guidance is -1.0, but should be a number from 0 to 100"),
        ("--audio-guidance=101", "error: audio_guidance is 101.0, but should be a number from 0 to 100"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "plan", "estimate"])
def test_a_wrong_value_is_one_sentence(
    command: str, flag: str, expected: str, small, portrait: Path, short_wav: Path, tmp_path: Path
) -> None:
    arguments: list[object] = [command, small.bundle, flag]
    if command == "generate":
        arguments = ["generate", f"--bundle={small.bundle}", f"--image={portrait}", f"--audio={short_wav}",
                     f"--output={tmp_path / 'video.mp4'}", flag]  # fmt: skip
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert expected in result.output.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sigmas": [3, 4]}, "line 1: sigmas is (3, 4), but should be noise levels above zero that decrease"),
        ({"sigmas": "700,3"}, "line 1: 'sigmas' is '700,3', but should be noise levels"),
        ({"sigmas": [700, "3"]}, "line 1: 'sigmas' is (700, '3'), but should be noise levels"),
        ({"sigmas": 700}, "line 1: 'sigmas' is 700, but should be noise levels"),
        ({"speed": "quick"}, "line 1: speed is 'quick', but should be one of exact, balanced, fast, fastest"),
        ({"speed": ["fast"]}, "speed"),
        ({"image_guidance": "2"}, "line 1: 'image_guidance' is '2', but should be a number from 0 to 100"),
    ],
)
def test_a_wrong_line_is_one_sentence(
    options: dict[str, Any], expected: str, small, portrait: Path, short_wav: Path, tmp_path: Path
) -> None:
    line = {"image": str(portrait), "audio": str(short_wav), "output": "b.mp4"} | options
    (tmp_path / "jobs.jsonl").write_text(json.dumps(line))
    result = run("batch", tmp_path / "jobs.jsonl", f"--bundle={small.bundle}")
    assert result.exit_code == 2 and "Traceback" not in result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("error: ") and expected in last
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.jsonl"]
