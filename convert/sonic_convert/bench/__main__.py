"""The benchmarks: ``python -m sonic_convert.bench CHECKPOINT BUNDLE --output FOLDER``.

Every result is a ratio of two runs on one machine. They are written as a JSON file, a report in Markdown and
plots.
"""

from __future__ import annotations

import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

import click
import torch
from rich.markdown import Markdown

from sonic.bundle.store import find_bundle
from sonic.cli.errors import user_errors
from sonic.cli.tables import console
from sonic.errors import InputError
from sonic.model import load_model
from sonic.progress import ConsoleProgress
from sonic.storage.files import write_json
from sonic_convert.bench.calls import ENGINES, CallTimes, bench_decoder, bench_unet
from sonic_convert.bench.clips import BatchTimes, CommandRun, bench_batch, generate, write_speech
from sonic_convert.bench.report import plot_results, write_report
from sonic_convert.checkpoint.checkpoint import Checkpoint, find_checkpoint

_DECODED_FRAMES = 2  # few, to be quick; a clip is decoded in chunks of eight
ASSETS = Path(__file__).parents[1] / "assets"


@click.command()
@click.argument("checkpoint")
@click.argument("bundle")
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True,
              help="Folder of the results.")  # fmt: skip
@click.option("--work", type=click.Path(path_type=Path),
              help="Work folder of the conversion, for its unfused graph [BUNDLE.work].")  # fmt: skip
@click.option("--also", type=click.Path(path_type=Path), multiple=True,
              help="A bundle of another precision, timed too; may be repeated.")  # fmt: skip
@click.option("--engine", "engines", type=click.Choice(ENGINES), multiple=True,
              help="Time only this engine beside the bundles; may be repeated [all].")  # fmt: skip
@click.option("--frames", type=click.IntRange(1), default=8, show_default=True)
@click.option("--resolution", type=click.IntRange(64), default=256, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--lengths", default="6,15,30,60", show_default=True, help="Seconds of the clips.")
@click.option(
    "--clips/--no-clips", default=True, help="Also time whole clips, not only one call of the UNet [on]."
)
def main(
    checkpoint: str,
    bundle: str,
    output: Path,
    work: Path | None,
    also: tuple[Path, ...],
    engines: tuple[str, ...],
    frames: int,
    resolution: int,
    repeats: int,
    lengths: str,
    clips: bool,
) -> None:
    """Time one UNet call in PyTorch, ONNX Runtime and OpenVINO, and clips of BUNDLE.

    With --also, time the VAE decoder too.
    """
    with user_errors():
        progress = ConsoleProgress()
        seconds = _parse_lengths(lengths)
        output.mkdir(parents=True, exist_ok=True)
        opened, found = Checkpoint.open(find_checkpoint(checkpoint)), find_bundle(bundle)
        work = work or found.with_name(f"{found.name}.work")
        unfused = work / "unet" / "simplified" / "model.onnx"
        engines = engines or ENGINES
        if "unfused" in engines and not unfused.is_file():
            click.echo(f"note: there is no {unfused}, so the unfused graph is left out (--work)", err=True)
        model, others = load_model(found), [load_model(other) for other in also]
        times = bench_unet(
            opened, model, unfused if unfused.is_file() else None, frames, resolution, repeats, progress,
            others, engines,
        )  # fmt: skip
        decoder = None
        if others:
            decoder = bench_decoder(model, others, _DECODED_FRAMES, resolution, repeats, progress)
        runs: dict[float, CommandRun] = {}
        batch = None
        if clips:
            runs, batch = _bench_clips(found, seconds, progress)
        _write_json(output / "results.json", times, decoder, runs, batch)
        report = write_report(output / "report.md", machine_name(), found.name, times, decoder, runs, batch)
        plot_results(output, times, runs)
    console().print(Markdown(report))


def _parse_lengths(text: str) -> list[float]:
    try:
        seconds = sorted({float(part) for part in text.split(",")})
    except ValueError:
        seconds = []
    if len(seconds) < 2 or seconds[0] < 1:
        raise InputError(f"lengths is {text!r}, but should be two numbers of seconds or more, such as 6,60")
    return seconds


def _bench_clips(
    bundle: Path, lengths: list[float], progress: ConsoleProgress
) -> tuple[dict[float, CommandRun], BatchTimes]:
    image = ASSETS / "portrait.png"
    with tempfile.TemporaryDirectory(prefix="sonic-bench-") as name:
        folder = Path(name)
        runs = {}
        with progress.stage("clips", len(lengths)) as advance:
            for seconds in lengths:
                speech = folder / f"speech{seconds:g}.wav"
                write_speech(ASSETS / "speech.wav", seconds, speech)
                runs[seconds] = generate(bundle, image, speech, folder / f"clip{seconds:g}.mp4")
                advance()
        with progress.stage("batch", 1) as advance:
            batch = bench_batch(bundle, image, ASSETS / "speech.wav", 4, folder, "--memory", "fast")
            advance()
    return runs, batch


def _write_json(
    path: Path,
    times: CallTimes,
    decoder: CallTimes | None,
    runs: dict[float, CommandRun],
    batch: BatchTimes | None,
) -> None:
    values = {
        "machine": machine_name(),
        "unet": asdict(times),
        "vae_decoder": None if decoder is None else asdict(decoder),
        "clips": {f"{seconds:g}": asdict(run) for seconds, run in runs.items()},
        "batch": None if batch is None else asdict(batch),
    }
    write_json(path, values)


def machine_name() -> str:
    """The processor's name, and the number of threads that PyTorch uses."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return f"{name}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
