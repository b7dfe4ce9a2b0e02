"""The benchmarks' own arithmetic, and one small run of each kind."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest
from click.testing import CliRunner

from sonic.errors import SonicError
from sonic.model import load_model
from sonic.progress import NoProgress
from sonic_convert.bench.__main__ import main
from sonic_convert.bench.calls import BUNDLE, OPENVINO, PYTORCH, UNFUSED, CallTimes, bench_decoder, bench_unet
from sonic_convert.bench.clips import BatchTimes, CommandRun, generate, write_speech
from sonic_convert.bench.report import plot_results, write_report
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


def test_the_report_says_ratios(tmp_path: Path) -> None:
    batch = BatchTimes(4, 40.0, 32.0)
    report = write_report(tmp_path / "report.md", "a machine", "tiny", TIMES, DECODER, RUNS, batch)
    assert report == (tmp_path / "report.md").read_text()
    assert "| ONNX Runtime, unfused graph | 3.000 | 3.000 | 1.33 | 1.50 | 6.80 |" in report
    assert "| the bundle | 2.000 | 2.000 | 2.00 | 1.00 |  |" in report
    assert "| 60 s | 90.0 | 110 | 9.00 | 1.10 | 5.0% |" in report
    assert "1.25 times the throughput" in report


def test_plots_are_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = plot_results(tmp_path, TIMES, RUNS)
    assert [path.name for path in paths] == ["engines.png", "stages.png", "memory.png", "length.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_report_without_pytorch(tmp_path: Path) -> None:
    times = CallTimes(8, 256, {BUNDLE: [2.0], f"{BUNDLE} int8": [1.0]})
    report = write_report(tmp_path / "report.md", "a machine", "tiny", times, times, {}, None)
    assert report.count("| the bundle int8 | 1.000 | 1.000 |  | 0.50 |  |") == 2
    report = write_report(tmp_path / "report.md", "a machine", "tiny", times, None, {}, None)
    assert "VAE decoder" not in report


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
    run = generate(small.bundle, portrait, short_wav, tmp_path / "clip.mp4", *fast)
    assert {"denoising", "frames"} <= set(run.stages)
    assert 0 < sum(run.stages.values()) < run.seconds
    assert run.peak_bytes > 30_000_000 and (tmp_path / "clip.mp4").is_file()
    with pytest.raises(SonicError, match="failed .*nothing.png"):
        generate(small.bundle, tmp_path / "nothing.png", short_wav, tmp_path / "clip.mp4", *fast)


def test_speech_is_repeated_to_a_length(short_wav: Path, tmp_path: Path) -> None:
    write_speech(short_wav, 7.25, tmp_path / "long.wav")
    with wave.open(str(short_wav)) as source, wave.open(str(tmp_path / "long.wav")) as found:
        assert found.getnframes() == round(7.25 * source.getframerate())
        assert found.readframes(source.getnframes()) == source.readframes(source.getnframes())


@pytest.mark.parametrize("lengths", ["six,60", "6", "0.1,6"])
def test_lengths_that_cannot_be_compared(small, lengths: str) -> None:
    result = CliRunner().invoke(main, [str(small.checkpoint), str(small.bundle), f"--lengths={lengths}"])
    assert result.exit_code == 2 and "such as 6,60" in result.output
