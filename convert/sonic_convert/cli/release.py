"""``sonic-convert release``: everything that is published, in one folder."""

from __future__ import annotations

from pathlib import Path

import click

from sonic.cli.errors import user_errors
from sonic.progress import ConsoleProgress
from sonic_convert.checkpoint.layout import Variant
from sonic_convert.cli.options import PATH, VARIANT, RecordingArguments, recording_options


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--name", help="What the bundles' names begin with [the checkpoint's folder].")
@click.option("--precision", "precisions", multiple=True, help="fp32, fp16 or int8; repeat it [all].")
@click.option("--compile", "targets", multiple=True, metavar="TARGET",
              help="Also compile the smallest bundle for a server, as generic-armv8; repeat it.")  # fmt: skip
@click.option(
    "--work",
    type=PATH,
    default=Path("build/release"),
    show_default=True,
    help="Folder of intermediate results.",
)
@click.option(
    "--repository", type=PATH, default=Path(), help="The clone whose commit is released [this folder]."
)
@click.option("--measured", type=PATH, help="measured-memory.json of a release to reproduce.")
@VARIANT
@recording_options
def release(
    checkpoint: Path,
    folder: Path,
    name: str | None,
    precisions: tuple[str, ...],
    targets: tuple[str, ...],
    work: Path,
    repository: Path,
    measured: Path | None,
    variant: Variant,
    recording: RecordingArguments,
) -> None:
    """Make a release in FOLDER: packages, CHECKPOINT's bundles, checksums, bill of materials, notes."""
    with user_errors():
        from sonic_convert.release.packages import check_tools

        check_tools()
        from sonic_convert.release.bundles import PRECISIONS, BundleOptions
        from sonic_convert.release.release import make_release

        options = BundleOptions(
            checkpoint, name or checkpoint.name, precisions or PRECISIONS, targets, variant,
            recording.examples, recording.options,
        )  # fmt: skip
        files = make_release(repository, folder, work, options, ConsoleProgress(), measured)
        for path in files:
            click.echo(f"{path}: {path.stat().st_size / 1e6:,.2f} MB")
