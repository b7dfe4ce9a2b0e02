"""The ``sonic`` command: thin wrappers around :mod:`sonic`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import sonic
from sonic.bundle import find_bundle, open_bundle
from sonic.cpu import parse_processors, pin_to_processors, stay_on_a_node
from sonic.errors import SonicError
from sonic.info import print_manifest
from sonic.options import MEMORY_MODES, RunOptions
from sonic.progress import ConsoleProgress
from sonic.video import check_output_path

PATH = click.Path(path_type=Path)


@contextmanager
def user_errors() -> Iterator[None]:
    """Print an error that the user can solve as one sentence (exit code 2), and warnings as notes.

    An interrupt ends with exit code 130, as shells expect.
    """

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"note: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", sonic.SonicWarning)
        warnings.showwarning = show
        try:
            yield
        except SonicError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        except OSError as error:  # a disk that is full, a folder that may not be read
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"error: {where}{error.strerror or error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was written", err=True)
            sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sonic.__version__, package_name="sonic-runtime")
def main() -> None:
    """Talking-head video from one portrait and one recording, on a CPU."""


def with_options(command: Any, options: Sequence[Any]) -> Any:
    """A command with click's options, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def _pin(_context: click.Context, _parameter: click.Parameter, text: str | None) -> None:
    """Pin the process before anything starts a thread."""
    if text is not None:
        with user_errors():
            pin_to_processors(parse_processors(text))


def processors_option(command: Any) -> Any:
    """The option of every command that runs submodels."""
    return click.option(
        "--cpus", callback=_pin, expose_value=False, metavar="LIST",
        help="Run on these processors only, such as 0-31 [all that the process may use].",
    )(command)  # fmt: skip


def engine_options(command: Any) -> Any:
    """The options of every command that runs the UNet."""
    memory = click.option("--memory", type=click.Choice(MEMORY_MODES), default="balanced", show_default=True,
                          help="Guidance branches one by one, together, or all at once.")  # fmt: skip
    threads = click.option("--threads", type=click.IntRange(1), help="Threads for one operator.")
    bfloat16 = click.option("--bfloat16/--no-bfloat16", default=False,
                            help="Products in bfloat16, where aarch64 processors have it [off].")  # fmt: skip
    return threads(processors_option(bfloat16(memory(command))))


def generation_options(command: Any) -> Any:
    """The options that ``sonic generate`` and ``generate.py`` share."""
    options = [
        click.option("--image", required=True, type=PATH, help="Portrait (JPEG, PNG, WebP, ...)."),
        click.option("--audio", required=True, type=PATH, help="Speech (WAV, MP3, FLAC, M4A, ...)."),
        click.option("--output", required=True, type=PATH, help="Video to write (.mp4)."),
        click.option("--duration", type=float, help="Seconds of the recording to use [all]."),
        click.option("--resolution", type=int, help="Short side in pixels [the bundle's]."),
        click.option("--steps", type=int, help="Denoising steps [the bundle's]."),
        click.option("--seed", type=int, help="Seed of the noise [the bundle's]."),
        click.option("--dynamic-scale", type=float, default=1.0, show_default=True,
                     help="Multiplies both motion buckets."),
        click.option("--motion-scale", type=float, default=1.0, show_default=True,
                     help="Multiplies the expression bucket on top."),
        click.option("--expand-ratio", type=float,
                     help="Crop to the face box, expanded by this ratio on each side [no crop]."),
        click.option("--lip-sync-correction/--no-lip-sync-correction", default=False,
                     help="Shift the sound by up to two frames to fit the mouth [off]."),
        click.option("--smooth-motion/--no-smooth-motion", default=False,
                     help="Filter out jitter over time [off]."),
        click.option("--noise", type=PATH,
                     help="Initial noise, .npy float32 (frames, 4, H/8, W/8)."),
        click.option("--dump", type=PATH, help="Folder for intermediate results (.npy)."),
    ]  # fmt: skip
    return with_options(engine_options(command), options)


def _load(
    bundle: str, threads: int | None, memory: str = "balanced", bfloat16: bool = False
) -> sonic.SonicModel:
    """A model for a process of its own."""
    stay_on_a_node(RunOptions(memory, threads, bfloat16).threads_at_once)
    return sonic.load_model(bundle, threads=threads, memory=memory, bfloat16=bfloat16)


@main.command()
@click.option("--bundle", required=True, help="A bundle's name or path.")
@generation_options
def generate(bundle: str, **options: Any) -> None:
    """Generate a talking-head video."""
    run_generate(bundle, **options)


def run_generate(
    bundle: str,
    *,
    image: Path,
    audio: Path,
    output: Path,
    resolution: int | None,
    steps: int | None,
    threads: int | None,
    memory: str,
    bfloat16: bool,
    **options: Any,
) -> None:
    """Generate a video and say where it is; errors as in :func:`user_errors`."""
    with user_errors():
        check_output_path(output)
        progress = ConsoleProgress()
        model = _load(bundle, threads, memory, bfloat16)
        rate = model.constants.video.h264_constant_rate_factor
        with model.stream(
            image=image,
            audio=audio,
            min_resolution=resolution,
            inference_steps=steps,
            progress=progress,
            spool_directory=output.parent,
            **options,
        ) as video:
            sonic.save_video(video, output, constant_rate_factor=rate)
        frames, height, width, _ = video.shape
        click.echo(
            f"{output}: {frames / video.frame_rate_hz:.2f} s, {frames} frames of {width} x {height} at "
            f"{video.frame_rate_hz:g} Hz, {os.path.getsize(output) / 1e6:.2f} MB"
        )


@main.command()
@click.argument("jobs", type=PATH)
@click.option("--bundle", required=True, help="A bundle's name or path.")
@click.option("--together", type=click.IntRange(1), default=4, show_default=True,
              help="Clips that are denoised together.")  # fmt: skip
@click.option("--report", type=PATH, help="What became of each job [JOBS.report.jsonl].")
@engine_options
def batch(
    jobs: Path,
    bundle: str,
    together: int,
    report: Path | None,
    threads: int | None,
    memory: str,
    bfloat16: bool,
) -> None:
    """Generate a video for every line of JOBS, a file of JSON objects.

    A line holds "image", "audio" and "output", paths relative to the file's folder, and options of
    'sonic generate', for example {"image": "a.png", "audio": "a.wav", "output": "a.mp4", "seed": 7}.
    A job that fails does not stop the others (exit code 1 in the end); a run that was stopped goes on
    with what is not done.
    """
    with user_errors():
        from sonic.batch import read_jobs, report_path, run_batch

        todo = read_jobs(jobs)
        model = _load(bundle, threads, memory, bfloat16)
        reports = run_batch(
            model, todo, report or report_path(jobs), together, ConsoleProgress(),
            lambda job, ended: click.echo(f"{job.output}: {ended.error or ended.status}"),
        )  # fmt: skip
        failed = sum(ended.status == "failed" for ended in reports)
        click.echo(f"{len(reports) - failed} of {len(reports)} jobs done")
    if failed:
        sys.exit(1)


@main.command()
@click.argument("bundle")
@click.option("--duration", type=float, default=10.0, show_default=True, help="Seconds of speech.")
@click.option("--resolution", type=int, help="Side of a square video in pixels [the bundle's].")
@click.option("--steps", type=int, help="Denoising steps [the bundle's].")
@click.option("--machine", "machines", multiple=True,
              help="A server's name or the JSON file of one; repeat it to compare [all that are known].")
@click.option("--calibrate", is_flag=True, help="Measure this machine for some 10 seconds.")
@click.option("--save", type=PATH, help="With --calibrate: write what was measured to this JSON file.")
@click.option("--threads", type=click.IntRange(1), help="Threads for one operator.")
@processors_option
def estimate(
    bundle: str,
    duration: float,
    resolution: int | None,
    steps: int | None,
    machines: tuple[str, ...],
    calibrate: bool,
    save: Path | None,
    threads: int | None,
) -> None:
    """Say what a clip would cost: operations, time, memory, disk and energy."""
    with user_errors():
        from sonic.estimate_report import run_estimate

        if calibrate:  # as the clip would
            stay_on_a_node(RunOptions(threads=threads).threads_at_once)
        run_estimate(bundle, duration, resolution, steps, machines, calibrate, save, threads)


@main.command()
@click.argument("bundle")
@click.option("--threads", type=click.IntRange(1), help="Threads for one operator.")
@processors_option
@click.option("--json", "report_path", type=PATH, help="Write the numbers to this file.")
def verify(bundle: str, threads: int | None, report_path: Path | None) -> None:
    """Hold BUNDLE, as this machine runs it, against PyTorch; exits with 1 beyond its tolerances.

    The bundle carries inputs and a short clip with what PyTorch made of them; PyTorch is not needed.
    """
    with user_errors():
        from sonic.verification import verification_table, verify_bundle, write_verification

        found = verify_bundle(_load(bundle, threads), ConsoleProgress())
        Console().print(verification_table(found))
        if report_path is not None:
            write_verification(report_path, found)
    if not found.passed:
        sys.exit(1)


@main.command()
@click.argument("bundle")
def info(bundle: str) -> None:
    """Print what a bundle holds: its manifest as a table."""
    with user_errors():
        directory = find_bundle(bundle)
        bundle_found = open_bundle(directory, check_digests=False)
        print_manifest(bundle_found.manifest, directory, Console())


if __name__ == "__main__":
    main()
