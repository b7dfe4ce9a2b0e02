"""`python -m sonic_training`: makes the sonic-tiny checkpoint from nothing."""

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
              help="Where data and the training's state are kept; a run goes on from there.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads; all cores where absent.")
def main(out: Path, work: Path, threads: int | None) -> None:
    """Train every part of sonic-tiny on drawn faces and synthesized speech, and write it to OUT."""
    with user_errors():
        torch.set_num_threads(threads or os.cpu_count() or 1)
        make_checkpoint(work, out, Recipe())
    click.echo(f"checkpoint: {out}")


if __name__ == "__main__":
    main()
