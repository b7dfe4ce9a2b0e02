"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sonic.cli.errors import user_errors
from sonic.host import parse_processors, pin_to_processors
from sonic.options import MEMORY_MODES

PATH = click.Path(path_type=Path)


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
