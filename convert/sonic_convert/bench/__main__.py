"""The benchmarks: ``python -m sonic_convert.bench CHECKPOINT BUNDLE --output FOLDER``.

Every result is a ratio of two runs on one machine. They are written as a JSON file, a report in Markdown and
plots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.markdown import Markdown

from sonic.cli.errors import user_errors
from sonic.cli.tables import console
from sonic.errors import InputError
from sonic.options import MEMORY_MODES
from sonic.progress import ConsoleProgress
from sonic.storage.files import write_json
from sonic_convert.bench.calls import ENGINES
from sonic_convert.bench.plots import plot_results
from sonic_convert.bench.report import write_report
from sonic_convert.bench.suite import PARTS, BenchOptions, run_benchmarks

PATH = click.Path(path_type=Path)
_Number = TypeVar("_Number", int, float)


@click.command()
@click.argument("checkpoint")
@click.argument("bundle")
@click.option("--output", type=PATH, default=Path("build/bench"), show_default=True, help="Results' folder.")
@click.option(
    "--only",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    help="Measure only one call of the UNet; clips of several lengths, and a batch; clips by preset and "
    "precision; or several processes at once. May be repeated [all].",
)
@click.option("--also", multiple=True, help="A bundle of another precision, too; may be repeated.")
@click.option(
    "--engine",
    "engines",
    type=click.Choice(ENGINES),
    multiple=True,
    help="Time only this engine beside the bundles; may be repeated [all].",
)
@click.option(
    "--resolution",
    "resolution_pixels",
    type=click.IntRange(64),
    default=256,
    show_default=True,
    help="calls, presets, company: pixels.",
)
@click.option("--work", type=PATH, help="calls: work folder of the conversion [BUNDLE.work].")
@click.option("--frames", type=click.IntRange(1), default=8, show_default=True, help="calls: frames.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="calls: timed runs.")
@click.option("--lengths", default="6,15,30,60", show_default=True, help="clips: seconds of speech.")
@click.option(
    "--speed",
    "speeds",
    multiple=True,
    help="presets, company: only this preset, or NAME:PRESET for the bundle of that name; may be repeated "
    "[presets: all; company: fast].",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=2.0,
    show_default=True,
    help="presets, company: seconds of speech.",
)
@click.option("--memory", type=click.Choice(MEMORY_MODES), help="presets, company: memory mode.")
@click.option(
    "--clip-repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="presets, company: timed runs.",
)
@click.option(
    "--torch-steps",
    type=click.IntRange(1),
    help="presets: denoise so many steps in PyTorch, and multiply their time [all steps].",
)
@click.option("--processes", default="1,2,4", show_default=True, help="company: processes at once.")
def main(
    output: Path,
    parts: tuple[str, ...],
    engines: tuple[str, ...],
    lengths: str,
    processes: str,
    **values: Any,
) -> None:
    """Time BUNDLE beside PyTorch, ONNX Runtime and OpenVINO: calls, whole clips, presets, and company.

    With --also, time bundles of other precisions and the VAE decoder too.
    """
    with user_errors():
        options = BenchOptions(
            parts=parts or PARTS,
            engines=engines or ENGINES,
            lengths=_numbers("lengths", lengths, float, 2, "two numbers of seconds or more, such as 6,60"),
            processes=_numbers("processes", processes, int, 1, "numbers of processes, such as 1,2,4"),
            **values,
        )
        output.mkdir(parents=True, exist_ok=True)
        results = run_benchmarks(options, ConsoleProgress())
        write_json(output / "results.json", results.to_json())
        report = write_report(output / "report.md", results)
        plot_results(output, results)
    console().print(Markdown(report))


def _numbers(
    name: str, text: str, kind: Callable[[str], _Number], least: int, wanted: str
) -> tuple[_Number, ...]:
    """Numbers of at least 1 that are separated by commas, sorted.

    Raises:
        InputError: they are others, or fewer than `least`.
    """
    try:
        numbers = sorted({kind(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if len(numbers) < least or numbers[0] < 1 or not all(map(math.isfinite, numbers)):
        raise InputError(f"{name} is {text!r}, but should be {wanted}")
    return tuple(numbers)


if __name__ == "__main__":
    main()
