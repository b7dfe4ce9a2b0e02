"""``sonic watermark``: what the invisible mark in a video says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from sonic.cli.errors import user_errors
from sonic.cli.options import PATH
from sonic.watermark.detection import FALSE_POSITIVE_RATE
from sonic.watermark.reading import Reading, read_watermark


@click.group()
def watermark() -> None:
    """Read the invisible mark of generated videos."""


@watermark.command()
@click.argument("video", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of sentences.")
def read(video: Path, as_json: bool) -> None:
    """Find the mark in VIDEO, even if it was compressed, scaled, cropped or cut.

    The exit code is 0 if there is one, 1 if there is none that can be read, and 2 if the file is no video.
    """
    with user_errors():
        reading = read_watermark(video)
    click.echo(json.dumps(reading.to_json()) if as_json else _sentences(video, reading))
    if reading.detection is None:
        sys.exit(1)


def _sentences(video: Path, reading: Reading) -> str:
    size = f"{reading.frames} frames of {reading.width} x {reading.height}"
    found = reading.detection
    if found is None:
        return f"{video}: no watermark was found in {size}"
    values = found.watermark.to_json()
    mirrored = ", mirrored" if found.mirrored else ""
    agreement = (
        f"{100 * found.agreement:.1f} % of the code's bits, {found.deviations:.1f} standard deviations"
    )
    return "\n".join(
        [
            f"{video}: a watermark was found in {size}",
            f"bundle   {values['bundle']}   (the first digits of its manifest's SHA-256)",
            f"time     {values['time'] or 'not given'}",
            f"job      {values['job']}   ({values['job']:05x} in hexadecimal)",
            f"match    {agreement}{mirrored}",
            f"chance   below {FALSE_POSITIVE_RATE:.1g} that a video without a watermark gives one",
        ]
    )
