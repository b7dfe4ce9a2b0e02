"""``sonic generate``: generate one video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from sonic.bundle.trust import DEFAULT_TRUST, TrustOptions
from sonic.cli.errors import user_errors
from sonic.cli.options import (
    PATH,
    clip_options,
    limits_options,
    load_for_command,
    run_options,
    trust_options,
    with_options,
)
from sonic.media.checks import check_not_an_input
from sonic.media.credentials import UNSIGNED, CredentialOptions, open_credentials
from sonic.media.video import check_output_path, save_video
from sonic.model import ClipArguments
from sonic.options import IntakeLimits, RunOptions
from sonic.progress import ConsoleProgress
from sonic.resume import checkpoint_path
from sonic.storage.owned import remove_abandoned

OUTPUT = click.option("--output", required=True, type=PATH, help="Video to write (.mp4).")


@click.command()
@click.option("--bundle", required=True, help="A bundle's name or path.")
@OUTPUT
@clip_options
@with_options(CredentialOptions, "signing")
@run_options
@limits_options
@trust_options
def generate(
    bundle: str,
    output: Path,
    clip: ClipArguments,
    signing: CredentialOptions,
    run: RunOptions,
    limits: IntakeLimits,
    trust: TrustOptions,
) -> None:
    """Generate a talking-head video."""
    with user_errors():
        click.echo(generate_file(bundle, output, clip, run, trust, limits, signing))


def generate_file(
    bundle: str,
    output: Path,
    clip: ClipArguments,
    run: RunOptions,
    trust: TrustOptions = DEFAULT_TRUST,
    limits: IntakeLimits | None = None,
    signing: CredentialOptions = UNSIGNED,
) -> str:
    """Generate a video into a file, with its checkpoint beside it; what killed runs left there is removed.

    Returns:
        A line that says where the video is, and its duration and size.

    Raises:
        InputError, OutputError, BundleError: as for :meth:`sonic.SonicModel.generate` and
            :func:`sonic.save_video`; InputError also if the output is one of the inputs.
    """
    check_not_an_input(output, input_files(clip))
    check_output_path(output)
    credentials = open_credentials(signing)
    model = load_for_command(bundle, run, trust, limits)
    rate = model.constants.video.h264_constant_rate_factor
    remove_abandoned(output.absolute().parent)
    arguments = replace(
        clip,
        progress=ConsoleProgress(),
        spool_directory=output.parent,
        checkpoint=checkpoint_path(output),
    )
    with model.stream_clip(arguments) as video:
        save_video(video, output, constant_rate_factor=rate, credentials=credentials)
    frames, height, width, _ = video.shape
    return (
        f"{output}: {frames / video.frame_rate_hz:.2f} s, {frames} frames of {width} x {height} at "
        f"{video.frame_rate_hz:g} Hz, {output.stat().st_size / 1e6:.2f} MB"
    )


def input_files(clip: ClipArguments) -> list[Path]:
    """The files that a clip is made from."""
    named = (clip.image, clip.audio, clip.noise)
    return [Path(path) for path in named if path is not None and not isinstance(path, np.ndarray)]
