"""Estimates: the calls that a generation really makes, machines from files, and the command."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import sonic
from sonic.cli.main import main
from sonic.costs.calibration import calibrate
from sonic.costs.estimate import estimate_clip
from sonic.costs.machines import MACHINES, find_machine
from sonic.engines.watched import Call
from sonic.memory import peak_memory
from sonic.options import RunOptions
from sonic.plan import ClipSize, plan_clip


def test_the_calls_are_those_of_a_generation(model, portrait: Path, long_mp3: Path) -> None:
    calls: list[Call] = []
    video = model.generate(portrait, long_mp3, inference_steps=2, min_resolution=64, observer=calls.append)
    _, height, width, _ = video.shape
    clip = ClipSize(video.sound.duration_seconds, width, height, 2)
    expected: Counter[str] = Counter()
    work: dict[str, float] = {}
    plan = plan_clip(model.constants, clip)
    for calls_planned in plan.submodel_calls:
        name, sizes, count = calls_planned.submodel, calls_planned.sizes, calls_planned.count
        expected[name] += count
        flop = model.manifest.submodels[name].work.flop_of(sizes)
        work[name] = work.get(name, 0) + count * sum(flop.values())
    found = Counter(call.submodel for call in calls)
    # The audio heads run on pieces of a clip, whose work adds up to the same; silence is one frame more.
    for name in ("audio2token", "audio2bucket"):
        del expected[name], found[name]
    assert found == expected
    estimate = estimate_clip(model.manifest, plan, MACHINES["kunpeng920"])
    assert estimate.flop == work
    unet = next(call for call in calls if call.submodel == "unet")
    sizes = next(planned.sizes for planned in plan.submodel_calls if planned.submodel == "unet")
    assert unet.inputs["sample"].shape == (
        sizes["batch"], sizes["frames"], 8, sizes["height"], sizes["width"],
    )  # fmt: skip


def test_cost_grows_with_the_clip_and_memory_hardly(model) -> None:
    machine = MACHINES["graviton3"]
    short, long = (
        estimate_clip(model.manifest, plan_clip(model.constants, ClipSize(s, 128, 128, 25)), machine)
        for s in (6, 60)
    )
    assert 9 < long.total_seconds / short.total_seconds < 11
    assert long.peak_bytes < 1.15 * short.peak_bytes
    large = estimate_clip(model.manifest, plan_clip(model.constants, ClipSize(6, 512, 512, 25)), machine)
    assert large.peak_bytes > short.peak_bytes and large.total_seconds > 16 * short.total_seconds


def test_an_hour_needs_disk_and_no_more_memory(model) -> None:
    machine = MACHINES["graviton3"]
    minutes, hour = (
        estimate_clip(model.manifest, plan_clip(model.constants, ClipSize(s, 512, 512, 25)), machine)
        for s in (900, 3600)
    )
    assert hour.peak_bytes == pytest.approx(minutes.peak_bytes, abs=2**20)  # but for this process itself
    assert hour.disk_bytes == pytest.approx(4 * minutes.disk_bytes)
    latents = 2 * 45_000 * 4 * 64 * 64 * 4
    tokens = model.manifest.submodels["audio2token"].outputs[0].shape[2:]
    assert hour.disk_bytes == latents + 45_000 * np.prod([int(size) for size in tokens]) * 4


def test_the_fast_mode_counts_the_calls_that_there_are(model, monkeypatch) -> None:
    clip = ClipSize(4.0, 64, 64, 2)  # two windows of three branches

    def needed(cores: int, together: int = 1) -> float:
        monkeypatch.setattr("sonic.options.cpu_count", lambda: cores)
        run = RunOptions(memory="fast")
        return peak_memory(model.manifest, plan_clip(model.constants, clip, run), run, together)[1]

    assert needed(1) < needed(2) < needed(6) == needed(64)
    assert needed(64) < needed(6, together=4) < needed(64, together=4)


def test_calibration_measures_this_machine(model) -> None:
    machine = calibrate(model.engine, plan_clip(model.constants, ClipSize(1, 64, 64, 2)), seconds=0.2)
    assert not machine.projected
    assert set(machine.efficiency) == {"unet", "vae_decoder", "frame_interpolator", "other"}
    assert all(np.isfinite(value) and value > 0 for value in machine.efficiency.values())
    cost = estimate_clip(model.manifest, plan_clip(model.constants, ClipSize(1, 64, 64, 2)), machine)
    assert 0 < cost.total_seconds < 600


def test_a_machine_can_be_written_and_read(tmp_path: Path) -> None:
    machine = replace(MACHINES["altra"], name="mine", efficiency={"unet": 0.5, "other": 0.4})
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(machine.to_json()))
    assert find_machine(str(path)) == machine


BAD = {
    "unknown": (None, "kunpeng920"),
    "no JSON": ("{", "cannot be read"),
    "a list": ("[]", "list"),
    "an unknown entry": ('{"nam": 1}', "nam"),
    "a missing entry": ('{"name": "x"}', "missing"),
    "a wrong number": (json.dumps(MACHINES["altra"].to_json() | {"cores": 0}), "above zero"),
    "no efficiency": (json.dumps(MACHINES["altra"].to_json() | {"efficiency": {}}), "other"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_machine_is_one_sentence(case: str, small, tmp_path: Path) -> None:
    content, expected = BAD[case]
    path = tmp_path / "machine.json"
    if content is not None:
        path.write_text(content)
    result = CliRunner().invoke(main, ["estimate", str(small.bundle), f"--machine={path}"])
    assert result.exit_code == 2, result.output
    assert expected in result.output and "Traceback" not in result.output


def test_the_command_prints_every_known_machine(small, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["estimate", str(small.bundle), "--duration=60"])
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in MACHINES) and "projected" in result.output
    alone = CliRunner().invoke(main, ["estimate", str(small.bundle), f"--save={tmp_path / 'm.json'}"])
    assert alone.exit_code == 2 and "--calibrate" in alone.output


def test_a_bundle_that_says_nothing_of_its_work_is_refused(model) -> None:
    submodels = {name: replace(info, work=None) for name, info in model.manifest.submodels.items()}
    with pytest.raises(sonic.BundleError, match="convert the checkpoint again"):
        estimate_clip(
            replace(model.manifest, submodels=submodels),
            plan_clip(model.constants, ClipSize(1, 64, 64, 1)),
            MACHINES["altra"],
        )
