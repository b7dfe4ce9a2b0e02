"""The ``sonic`` command: thin wrappers around :mod:`sonic`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

import sonic
from sonic.bundle.store import find_bundle, open_bundle
from sonic.cli.errors import user_errors
from sonic.cli.generate import generate, load
from sonic.cli.info import print_manifest
from sonic.cli.options import PATH, engine_options, processors_option
from sonic.host import stay_on_a_node
from sonic.options import RunOptions
from sonic.progress import ConsoleProgress


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sonic.__version__, package_name="sonic-runtime")
def main() -> None:
    """Talking-head video from one portrait and one recording, on a CPU."""


main.add_command(generate)


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
        from sonic.jobs.job import read_jobs
        from sonic.jobs.journal import report_path
        from sonic.jobs.runner import run_batch

        todo = read_jobs(jobs)
        model = load(bundle, threads, memory, bfloat16)
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
@click.option(
    "--machine",
    "machines",
    multiple=True,
    help="A server's name or the JSON file of one; repeat it to compare [all that are known].",
)
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
        from sonic.cli.estimate import run_estimate

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
        from sonic.verification.verify import verification_table, verify_bundle, write_verification

        found = verify_bundle(load(bundle, threads), ConsoleProgress())
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
