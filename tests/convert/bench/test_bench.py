"""The benchmarks' own arithmetic, and one small run of each kind."""

from __future__ import annotations

import json
import shutil
import sys
import wave
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from sonic.bundle.manifest_file import read_manifest
from sonic.errors import InputError, SonicError
from sonic.model import load_model
from sonic.progress import NoProgress
from sonic_convert.bench.__main__ import main
from sonic_convert.bench.calls import BUNDLE, OPENVINO, PYTORCH, UNFUSED, CallTimes, bench_decoder, bench_unet
from sonic_convert.bench.clips import BatchTimes
from sonic_convert.bench.commands import (
    CommandRun,
    generate_command,
    run_command,
    run_together,
    write_speech,
)
from sonic_convert.bench.company import CompanyTimes, bench_company
from sonic_convert.bench.plots import plot_results
from sonic_convert.bench.presets import (
    ClipRuns,
    PresetTimes,
    bench_presets,
    choose_cases,
    make_clip,
    with_all_steps,
)
from sonic_convert.bench.report import write_report
from sonic_convert.bench.suite import Results
from sonic_convert.checkpoint.checkpoint import Checkpoint

TIMES = CallTimes(
    8,
    256,
    {PYTORCH: [4.0, 4.0, 9.0], UNFUSED: [3.0, 3.0, 3.0], BUNDLE: [2.0, 2.0, 3.0]},
    {UNFUSED: 6_800_000_000},
)
DECODER = CallTimes(2, 256, {BUNDLE: [2.0], f"{BUNDLE} int8": [1.0]})
RUNS = {
    6.0: CommandRun(10.0, {"denoising": 7.0, "frames": 1.5}, [(0.1, 50_000_000), (5.0, 100_000_000)]),
    60.0: CommandRun(90.0, {"denoising": 80.0, "frames": 4.5}, [(0.1, 50_000_000), (50.0, 110_000_000)]),
}
PRESETS = PresetTimes(
    2.0,
    256,
    [ClipRuns("tiny (int8), fast", 12, [10.0, 12.0, 10.0], {"denoising": 8.0}, 2_000_000_000)],
    ClipRuns(
        "PyTorch, published sampler",
        75,
        [300.0, 240.0, 200.0],
        {"torch: denoising": 180.0},
        7_000_000_000,
    ),
    25,
    2,
)
COMPANY = [CompanyTimes("tiny (int8), fast", {1: [10.0, 10.0, 12.0], 2: [20.0, 25.0, 24.0]})]
RESULTS = Results("a machine", "tiny", TIMES, DECODER, RUNS, BatchTimes(4, 40.0, 32.0), PRESETS, COMPANY)


def test_the_report_says_ratios(tmp_path: Path) -> None:
    report = write_report(tmp_path / "report.md", RESULTS)
    assert report == (tmp_path / "report.md").read_text()
    assert "| ONNX Runtime, unfused graph | 3.000 | 3.000 | 1.33 | 1.50 | 6.80 |" in report
    assert "| the bundle | 2.000 | 2.000 | 2.00 | 1.00 |  |" in report
    assert "| 60 s | 90.0 | 110 | 9.00 | 1.10 | 5.0% |" in report
    assert "1.25 times the throughput" in report


def test_the_report_has_presets_and_company(tmp_path: Path) -> None:
    report = write_report(tmp_path / "report.md", RESULTS)
    # The medians of the runs' ratios: of 30, 20 and 20, and of 1, 0.8 and 1.
    assert "| tiny (int8), fast | 12 | 10.0 | 10.0 | 8.0 | 20.00 | 0.2 | 2.00 |" in report
    assert "| PyTorch, published sampler | 75 | 240.0 | 200.0 | 180.0 | 1.00 | 0.00833 | 7.00 |" in report
    assert "2 of the published sampler's 25 steps; the time of denoising was multiplied by 25/2" in report
    assert "| tiny (int8), fast | 2 | 24.0 | 20.0 | 1.00 |" in report
    whole = write_report(
        tmp_path / "report.md", replace(RESULTS, presets=replace(PRESETS, measured_steps=25))
    )
    assert "full runs of the published sampler with 25 steps" in whole
    alone = write_report(tmp_path / "report.md", replace(RESULTS, presets=replace(PRESETS, published=None)))
    assert "PyTorch:" not in alone and "| 8.0 |  | 0.2 |" in alone


def test_results_are_json(tmp_path: Path) -> None:
    values = json.loads(json.dumps(RESULTS.to_json()))
    assert values["clips"]["6"]["seconds"] == 10.0
    assert values["presets"]["published"]["seconds"] == [300.0, 240.0, 200.0]
    assert values["company"][0]["seconds"]["2"] == [20.0, 25.0, 24.0]


def test_plots_are_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = plot_results(tmp_path, RESULTS)
    names = ["engines.png", "stages.png", "memory.png", "length.png", "presets.png", "company.png"]
    assert [path.name for path in paths] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    presets = Results("a machine", "tiny", presets=replace(PRESETS, published=None))
    assert [path.name for path in plot_results(tmp_path, presets)] == ["presets.png"]


def test_a_report_of_some_parts(tmp_path: Path) -> None:
    times = CallTimes(8, 256, {BUNDLE: [2.0], f"{BUNDLE} int8": [1.0]})
    report = write_report(tmp_path / "report.md", Results("a machine", "tiny", times, times))
    assert report.count("| the bundle int8 | 1.000 | 1.000 |  | 0.50 |  |") == 2
    report = write_report(tmp_path / "report.md", Results("a machine", "tiny", times))
    assert "VAE decoder" not in report and "processes" not in report and "preset" not in report


def test_decoders_alternate(small) -> None:
    model = load_model(small.bundle)
    times = bench_decoder(model, [model], 2, 64, 2, NoProgress())
    assert [len(seconds) for seconds in times.seconds.values()] == [2, 2]
    assert set(times.peak_bytes) == set(times.seconds)


def test_only_the_engines_that_are_wanted(small) -> None:
    model = load_model(small.bundle)
    times = bench_unet(Checkpoint.open(small.checkpoint), model, None, 2, 64, 1, NoProgress(), engines=())
    assert set(times.seconds) == {BUNDLE}


def test_every_engine_that_is_there_runs_as_often(small) -> None:
    model = load_model(small.bundle)
    unfused = model.engine.bundle.graph_path("unet")  # any graph will do
    times = bench_unet(Checkpoint.open(small.checkpoint), model, unfused, 2, 64, 2, NoProgress(), [model])
    graphs = {UNFUSED, BUNDLE, f"{BUNDLE} {model.manifest.name}"}
    assert set(times.seconds) - {OPENVINO} == {PYTORCH, *graphs}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.seconds.values())
    weights = model.manifest.submodels["unet"].bytes
    assert set(times.peak_bytes) == graphs and min(times.peak_bytes.values()) > weights


def test_a_command_is_measured_from_outside(small, portrait: Path, short_wav: Path, tmp_path: Path) -> None:
    fast = ("--steps", "1", "--resolution", "64")
    run = run_command(generate_command(small.bundle, portrait, short_wav, tmp_path / "clip.mp4", *fast))
    assert {"denoising", "frames"} <= set(run.stages)
    assert 0 < sum(run.stages.values()) < run.seconds
    assert run.peak_bytes > 30_000_000 and (tmp_path / "clip.mp4").is_file()
    nothing = generate_command(small.bundle, tmp_path / "nothing.png", short_wav, tmp_path / "clip.mp4")
    with pytest.raises(SonicError, match="failed .*nothing.png"):
        run_command(nothing)


def test_commands_run_at_the_same_time(tmp_path: Path) -> None:
    """Each waits for the file that the other makes, so that neither would end alone."""
    script = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.01)
"""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert run_together(
        [[sys.executable, "-c", script, *pair] for pair in ((first, second), (second, first))]
    )


def test_a_command_that_fails_in_company_is_named() -> None:
    succeeds = [sys.executable, "-c", ""]
    fails = [sys.executable, "-c", "import sys; sys.exit('no such luck')"]
    with pytest.raises(SonicError, match="failed .*no such luck"):
        run_together([succeeds, fails])


def test_steps_that_pytorch_did_not_run_are_multiplied() -> None:
    run = CommandRun(30.0, {"torch: denoising": 20.0, "torch: decoding": 5.0}, [(0.1, 1)])
    whole = with_all_steps(run, 2, 25)
    assert whole.seconds == 10.0 + 250.0 and whole.stages["torch: denoising"] == 250.0
    assert whole.stages["torch: decoding"] == 5.0
    assert with_all_steps(run, 25, 25) is run


def test_cases_are_of_all_bundles_or_of_one(small, tmp_path: Path) -> None:
    manifest = read_manifest(small.bundle)
    bundles = [small.bundle, tmp_path / "second"]
    bundles[1].mkdir()
    shutil.copy(small.bundle / "manifest.json", bundles[1])
    cases = choose_cases(bundles, ("exact", "fast", "fast"))
    assert [(case.bundle, case.speed) for case in cases] == [
        (bundle, speed) for bundle in bundles for speed in ("exact", "fast")
    ]
    evaluations = [case.evaluations for case in cases[:2]]
    assert evaluations == [3 * manifest.constants.sampler.steps, manifest.speeds.presets["fast"].evaluations]
    assert [case.title for case in choose_cases(bundles, ("second:fast",))] == ["second (fp32), fast"]
    for wrong in ("quick", "elsewhere:fast", ":quick"):
        with pytest.raises(InputError, match=f"speed is '{wrong}'.* exact, balanced, fast, fastest"):
            choose_cases(bundles, (wrong,))


def test_presets_beside_the_published_sampler(small, portrait: Path, short_wav: Path, tmp_path: Path) -> None:
    (case,) = choose_cases([small.bundle], ("fastest",))
    clip = make_clip(portrait, short_wav, 0.3, 64, tmp_path)
    times = bench_presets([case], clip, 1, tmp_path, NoProgress(), small.checkpoint, 1)
    (runs,), published = times.presets, times.published
    assert published is not None and (times.measured_steps, times.steps) == (1, 25)
    assert len(runs.seconds) == len(published.seconds) == 1 and runs.speed_up(published) > 0
    assert published.evaluations == 75 and {"torch: decoding", "torch: interpolation"} <= set(
        published.stages
    )
    assert published.denoising_seconds < published.median and runs.peak_bytes < published.peak_bytes
    assert (tmp_path / "published.mp4").stat().st_size and (tmp_path / "preset0.mp4").stat().st_size


def test_company_is_compared_with_one_alone(small, portrait: Path, short_wav: Path, tmp_path: Path) -> None:
    (case,) = choose_cases([small.bundle], ("fastest",))
    clip = make_clip(portrait, short_wav, 0.3, 64, tmp_path, "--memory", "low")
    times = bench_company(case, clip, [2], 1, tmp_path, NoProgress())
    assert list(times.seconds) == [1, 2] and times.throughput(1) == 1 and times.throughput(2) > 0
    first, second = (tmp_path / f"company{number}.mp4" for number in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_speech_is_repeated_to_a_length(short_wav: Path, tmp_path: Path) -> None:
    write_speech(short_wav, 7.25, tmp_path / "long.wav")
    with wave.open(str(short_wav)) as source, wave.open(str(tmp_path / "long.wav")) as found:
        assert found.getnframes() == round(7.25 * source.getframerate())
        assert found.readframes(source.getnframes()) == source.readframes(source.getnframes())


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--lengths=six,60", "such as 6,60"),
        ("--lengths=6", "such as 6,60"),
        ("--lengths=0.1,6", "such as 6,60"),
        ("--lengths=6,inf", "such as 6,60"),
        ("--processes=0", "such as 1,2,4"),
        ("--processes=1.5", "such as 1,2,4"),
        ("--speed=quick", "should be one of exact, balanced, fast, fastest"),
        ("--also=nowhere", "no bundle 'nowhere'"),
    ],
)
def test_options_that_cannot_be_used(small, tmp_path: Path, option: str, expected: str) -> None:
    arguments = [str(small.checkpoint), str(small.bundle), f"--output={tmp_path / 'bench'}", option]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and expected in result.output, result.output


def test_one_part_is_reported(small, tmp_path: Path) -> None:
    arguments = ["--only=company", "--processes=1", "--clip-repeats=1", "--seconds=0.3", "--resolution=64"]
    folder = tmp_path / "bench"
    result = CliRunner().invoke(
        main, [str(small.checkpoint), str(small.bundle), f"--output={folder}", *arguments]
    )
    assert result.exit_code == 0, result.output
    values = json.loads((folder / "results.json").read_text())
    assert values["unet"] is None and values["presets"] is None
    assert list(values["company"][0]["seconds"]) == ["1"]
    assert "| bundle (fp32), fast | 1 |" in (folder / "report.md").read_text()
