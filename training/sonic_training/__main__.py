"""`python -m sonic_training`: trains the sonic-tiny checkpoint from scratch."""

from __future__ import annotations

import os
from pathlib import Path

import click
import torch

from sonic.cli.errors import user_errors
from sonic_training.recipe import Recipe, make_checkpoint


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/sonic-tiny"), show_default=True,
              help="Folder for training data and state; an interrupted run resumes from it.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=None,
              help="Number of CPU threads.  [default: all cores]")  # fmt: skip
def main(out: Path, work: Path, threads: int | None) -> None:
    """Train every submodel of sonic-tiny on drawn faces and synthesized speech, and write it to OUT."""
    with user_errors():
        torch.set_num_threads(threads or os.cpu_count() or 1)
        make_checkpoint(work, out, Recipe())
        click.echo(f"checkpoint: {out}")


if __name__ == "__main__":
    main()
