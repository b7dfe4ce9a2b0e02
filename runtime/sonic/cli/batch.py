"""``sonic batch``: a video for every line of a jobs file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sonic.bundle.trust import TrustOptions
from sonic.cli.errors import printable, user_errors
from sonic.cli.options import (
    PATH,
    batch_options,
    limits_options,
    load_for_command,
    run_options,
    trust_options,
    with_options,
)
from sonic.media.checks import check_not_an_input
from sonic.media.credentials import CredentialOptions, open_credentials
from sonic.options import BatchOptions, IntakeLimits, RunOptions
from sonic.progress import ConsoleProgress


@click.command()
@click.argument("jobs", type=PATH)
@click.option("--bundle", required=True, help="A bundle's name or path.")
@click.option(
    "--together",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="How many clips are denoised together.",
)
@click.option("--report", type=PATH, help="File for the outcome of each job [JOBS.report.jsonl].")
@batch_options
@with_options(CredentialOptions, "signing")
@run_options
@limits_options
@trust_options
def batch(
    jobs: Path,
    bundle: str,
    together: int,
    report: Path | None,
    options: BatchOptions,
    signing: CredentialOptions,
    run: RunOptions,
    limits: IntakeLimits,
    trust: TrustOptions,
) -> None:
    """Generate a video for every line of JOBS, a file of JSON objects.

    A line holds "image", "audio" and "output", paths relative to the file's folder, and options of
    'sonic generate', for example {"image": "a.png", "audio": "a.wav", "output": "a.mp4", "seed": 7}.
    A job that fails does not stop the others (the exit code is then 1); a run that was stopped resumes
    with the jobs that are not done, each at the last step in its checkpoint.
    """
    with user_errors():
        from sonic.jobs.job import read_jobs
        from sonic.jobs.journal import journal_path
        from sonic.jobs.runner import run_batch

        todo, credentials = read_jobs(jobs), open_credentials(signing)
        journal = report or journal_path(jobs)
        check_not_an_input(journal, [jobs])
        reports = run_batch(
            load_for_command(bundle, run, trust, limits),
            todo,
            journal,
            together,
            ConsoleProgress(),
            lambda job, ended: click.echo(printable(f"{job.output}: {ended.error or ended.status}")),
            options,
            credentials,
        )
        failed = sum(ended.status == "failed" for ended in reports)
        click.echo(f"{len(reports) - failed} of {len(reports)} jobs done")
    if failed:
        sys.exit(1)
