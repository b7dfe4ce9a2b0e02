"""Estimates: the calls that a generation really makes, machines from files, and the command."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from manifests import write_values

import sonic
from sonic.bundle.manifest import Manifest
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.presets import SPEED_NAMES
from sonic.cli.main import main
from sonic.costs.calibration import calibrate
from sonic.costs.comparison import compare
from sonic.costs.estimate import Estimate, estimate_clip, layer_shares
from sonic.costs.machines import MACHINES, combine, find_machine, machine_at_hand
from sonic.engines.watched import Call
from sonic.execution import Resources, choose_execution
from sonic.memory import peak_memory
from sonic.options import AUTOMATIC, GenerationOptions, RunOptions
from sonic.plan import ClipPlan, ClipSize, denoising_steps, plan_clip, plan_square_clip


def test_the_calls_are_those_of_a_generation(model, portrait: Path, long_mp3: Path) -> None:
    calls: list[Call] = []
    video = model.generate(portrait, long_mp3, inference_steps=2, min_resolution=64, observer=calls.append)
    _, height, width, _ = video.shape
    clip = ClipSize(video.sound.duration_seconds, width, height)
    expected: Counter[str] = Counter()
    work: dict[str, float] = {}
    steps = denoising_steps(model.manifest, GenerationOptions(inference_steps=2))
    plan = plan_clip(model.constants, clip, steps)
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


def square(manifest: Manifest, seconds: float, pixels: int, **options: object) -> ClipPlan:
    """The plan of a square clip."""
    return plan_square_clip(manifest, GenerationOptions(duration=seconds, min_resolution=pixels, **options))


def test_cost_grows_with_the_clip_and_memory_hardly(model) -> None:
    machine = MACHINES["graviton3"]
    low = RunOptions(memory="low")  # more calls at once would use many cores better, and take more memory
    short, long = (
        estimate_clip(model.manifest, square(model.manifest, s, 128), machine, low) for s in (6, 60)
    )
    assert 9 < long.total_seconds / short.total_seconds < 11
    assert long.peak_bytes < 1.15 * short.peak_bytes
    large = estimate_clip(model.manifest, square(model.manifest, 6, 512), machine, low)
    assert large.peak_bytes > short.peak_bytes and large.total_seconds > 16 * short.total_seconds


def test_an_hour_needs_disk_and_no_more_memory(model) -> None:
    machine = MACHINES["graviton3"]
    minutes, hour = (
        estimate_clip(model.manifest, square(model.manifest, s, 512), machine) for s in (900, 3600)
    )
    assert hour.peak_bytes == pytest.approx(minutes.peak_bytes, abs=2**20)  # but for this process itself
    assert hour.disk_bytes == pytest.approx(4 * minutes.disk_bytes)
    latents = 2 * 45_000 * 4 * 64 * 64 * 4
    tokens = model.manifest.submodels["audio2token"].outputs[0].shape[2:]
    assert hour.disk_bytes == latents + 45_000 * np.prod([int(size) for size in tokens]) * 4


def test_the_fast_mode_counts_the_calls_that_there_are(model) -> None:
    plan = square(model.manifest, 4.0, 64, inference_steps=2)  # two windows of three branches

    def needed(cores: int, together: int = 1) -> float:
        run = RunOptions(memory="fast")
        execution = choose_execution(model.manifest, [plan] * together, run, Resources(cores))
        return peak_memory(model.manifest, plan, execution.calls_at_once, together)[1]

    # Six calls of the UNet, seven of the decoder, 49 of the interpolator: more cores have nothing to do.
    assert needed(1) < needed(2) < needed(6) <= needed(49) == needed(64)
    assert needed(64) < needed(64, together=4)


def test_calibration_measures_this_machine(model) -> None:
    plan = square(model.manifest, 1, 64, inference_steps=2)
    machine = calibrate(model.engine, plan, seconds=0.2)
    assert not machine.projected
    assert set(machine.efficiency) == {"unet", "vae_decoder", "frame_interpolator", "other"}
    assert all(np.isfinite(value) and value > 0 for value in machine.efficiency.values())
    cost = estimate_clip(model.manifest, plan, machine)
    assert 0 < cost.total_seconds < 600 and not cost.projected


def in_precision(manifest: Manifest, precision: str, shares: dict[str, int] | None = None) -> Manifest:
    """The manifest of a bundle whose UNet and decoder are of another precision, with counts of parameters."""
    submodels = {
        name: replace(info, precision=precision if name in ("unet", "vae_decoder") else "fp32")
        for name, info in manifest.submodels.items()
    }
    facts = {} if shares is None else {"layers": {"unet": {"parameters": shares}}}
    return replace(manifest, name=f"in-{precision}", submodels=submodels, quantization=facts)


def test_precisions_take_what_their_layers_take(model) -> None:
    machine = replace(MACHINES["graviton3"], layer_speed={"int8": 4.0, "fp16": 0.5})
    plan = square(model.manifest, 2, 64)
    full, whole, half, partly = (
        estimate_clip(manifest, plan, machine)
        for manifest in (
            model.manifest,
            in_precision(model.manifest, "int8"),
            in_precision(model.manifest, "fp16"),
            in_precision(model.manifest, "int8", {"int8": 300, "weights8": 60, "fp32": 40}),
        )
    )
    (calls,) = [calls for calls in plan.submodel_calls if calls.submodel == "unet"]
    by_kind = model.manifest.submodels["unet"].work.flop_of(calls.sizes)
    attention = by_kind["attention"] / sum(by_kind.values())  # stays as it is

    def ratio(cost: Estimate) -> float:
        return cost.seconds["unet"] / full.seconds["unet"]

    assert 0 < attention < 1
    assert ratio(whole) == pytest.approx(attention + (1 - attention) / 4)
    assert ratio(half) == pytest.approx(attention + (1 - attention) / 0.5)
    assert ratio(partly) == pytest.approx(attention + (1 - attention) * (0.75 / 4 + 0.25))
    assert (
        whole.flop == full.flop and whole.seconds["frame_interpolator"] == full.seconds["frame_interpolator"]
    )
    assert layer_shares(model.manifest, "unet") == {"fp32": 1}


def test_only_machines_with_the_dot_product_gain_from_int8(model) -> None:
    plan, int8 = square(model.manifest, 2, 64), in_precision(model.manifest, "int8")
    gains = {
        name: estimate_clip(model.manifest, plan, machine).total_seconds
        / estimate_clip(int8, plan, machine).total_seconds
        for name, machine in MACHINES.items()
    }
    assert gains.pop("phytium-ft2000") == 1 and min(gains.values()) > 1.5


def test_what_was_measured_in_a_precision_counts_only_for_it(model) -> None:
    efficiency = {"unet": 1.0, "vae_decoder": 1.0, "frame_interpolator": 1.0, "other": 1.0}
    machine = replace(machine_at_hand(1, efficiency, 0.01), layer_speed={"int8": 2.0})
    plan, int8 = square(model.manifest, 2, 64), in_precision(model.manifest, "int8")
    full, projected = (estimate_clip(manifest, plan, machine) for manifest in (model.manifest, int8))
    assert not full.projected and projected.projected
    measured = machine_at_hand(1, {"unet:int8": 3.0, "vae_decoder:int8": 4.0, "other": 1.0}, 0.02)
    both = combine([machine, measured])
    assert both.encode_seconds_per_megapixel == 0.01 and both.efficiency["other"] == 1.0
    cost = estimate_clip(int8, plan, both)
    assert not cost.projected
    assert cost.seconds["unet"] == pytest.approx(full.seconds["unet"] / 3)
    assert cost.seconds["vae_decoder"] == pytest.approx(full.seconds["vae_decoder"] / 4)
    assert estimate_clip(model.manifest, plan, both).seconds == full.seconds


def test_every_preset_and_bundle_is_compared(model) -> None:
    machines = [MACHINES["kunpeng920"], MACHINES["graviton3"]]
    bundles = {"fp32": model.manifest, "int8": in_precision(model.manifest, "int8")}
    options = GenerationOptions(duration=3.0, min_resolution=64)
    found = compare(bundles, options, machines)
    assert [(one.bundle, one.speed, one.machine) for one in found] == [
        (bundle, speed, machine) for bundle in bundles for speed in SPEED_NAMES for machine in machines
    ]
    assert {one.speed for one in found if one.chosen} == {model.manifest.speeds.default}
    for one in found:
        again = plan_square_clip(one.manifest, replace(options, speed=one.speed))
        assert one.plan == again
        assert one.cost.seconds == estimate_clip(one.manifest, again, one.machine).seconds
    fast = compare(bundles, replace(options, speed="fast"), machines)
    assert len(fast) == 4 and all(one.chosen and one.speed == "fast" for one in fast)
    for steps in ({"inference_steps": 3}, {"sigmas": (700.0, 10.0, 1.0)}):
        (one,) = compare({"fp32": model.manifest}, replace(options, **steps), machines[:1])
        assert one.chosen and one.speed is None and len(one.plan.denoising.steps) == 3


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
    "a speed of zero": (
        json.dumps(MACHINES["altra"].to_json() | {"layer_speed": {"int8": 0}}),
        "above zero",
    ),
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


def estimated(*arguments: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(main, ["estimate", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def int8(small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest alone of a bundle in int8: an estimate needs no graphs."""
    folder = tmp_path_factory.mktemp("int8") / "int8"
    folder.mkdir()
    write_values(folder, in_precision(read_manifest(small.bundle), "int8").to_json())
    return folder


def test_the_command_prints_every_known_machine(small, tmp_path: Path) -> None:
    output = estimated(str(small.bundle), "--duration=60")
    assert all(name in output for name in MACHINES) and "projected" in output
    alone = CliRunner().invoke(main, ["estimate", str(small.bundle), f"--save={tmp_path / 'm.json'}"])
    assert alone.exit_code == 2 and "--calibrate" in alone.output


def test_the_command_prints_presets_and_precisions(small, int8: Path, tmp_path: Path) -> None:
    arguments = [str(small.bundle), str(int8), "--resolution=64", "--machine=graviton3"]
    path = tmp_path / "costs.json"
    output = estimated(*arguments, f"--json={path}", "--markdown")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()]
    rows = {tuple(row[:2]): row for row in cells if len(row) == 6}  # of the table of times
    assert rows["machine", "bundle"][2:] == list(SPEED_NAMES)
    values = json.loads(path.read_text())
    assert len(values) == 8 and {value["machine"] for value in values} == {"graviton3"}
    for precision in ("fp32", "int8"):
        found = {value["speed"]: value for value in values if value["precision"] == precision}
        shown = rows["graviton3 (projected)", precision][2:]
        assert shown == [f"{found[speed]['total_seconds']:.1f} s" for speed in SPEED_NAMES]
        assert found["fastest"]["evaluations_per_window"] < found["exact"]["evaluations_per_window"] == 75
    assert "cost with the speed exact" in output and "bundle (fp32), in-int8 (int8)" in output
    one = estimated(*arguments, "--speed=fast")
    assert "cost with the speed fast" in one and "time of the whole clip" not in one
    assert "share" in one and "balanced" not in one
    assert "3 steps" in estimated(*arguments, "--steps=3") and "note" not in one


def test_bundles_of_one_precision_have_their_names(small, int8: Path, tmp_path: Path) -> None:
    second = tmp_path / "other"
    second.mkdir()
    write_values(second, replace(read_manifest(int8), name="other-int8").to_json())
    arguments = (str(int8), "--resolution=64", "--speed=fast", "--machine=altra")
    named = estimated(*arguments, str(second))
    assert "in-int8 " in named and "other-int8 " in named
    shutil.copy(int8 / "manifest.json", second)
    assert str(second) in estimated(*arguments, str(second))
    # Twice the same bundle is one.
    assert estimated(*arguments, str(int8)).count("altra (projected)") == 1


def test_machines_of_one_name_have_their_rows(small, tmp_path: Path) -> None:
    files = []
    for cores in (8, 16):
        files.append(tmp_path / f"{cores}.json")
        files[-1].write_text(json.dumps(MACHINES["altra"].to_json() | {"cores": cores}))
    arguments = [str(small.bundle), "--resolution=64", *(f"--machine={path}" for path in files)]
    assert estimated(*arguments).count("altra (projected)") == 4  # in two tables


def test_this_machine_is_measured_and_saved(small, int8: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(calibrate, "__defaults__", (0.2, AUTOMATIC))
    path = tmp_path / "mine.json"
    arguments = [str(small.bundle), "--resolution=64", "--duration=1"]
    output = estimated(*arguments, "--calibrate", f"--save={path}")
    assert "this machine  " in output and "projected" not in output
    saved = find_machine(str(path))
    assert not saved.projected and "unet" in saved.efficiency
    again = estimated(*arguments, f"--machine={path}", str(int8))
    assert again.count("this machine (projected)") == 2  # in int8, which was not measured


def test_a_bundle_that_says_nothing_of_its_work_is_refused(model) -> None:
    submodels = {name: replace(info, work=None) for name, info in model.manifest.submodels.items()}
    with pytest.raises(sonic.BundleError, match="convert the checkpoint again"):
        estimate_clip(
            replace(model.manifest, submodels=submodels),
            square(model.manifest, 1, 64),
            MACHINES["altra"],
        )
