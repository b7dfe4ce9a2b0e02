"""sonic generate"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

import sonic
from sonic.cli.errors import user_errors
from sonic.cli.options import generation_options
from sonic.host import stay_on_a_node
from sonic.media.video import check_output_path
from sonic.options import RunOptions
from sonic.progress import ConsoleProgress


def load(
    bundle: str, threads: int | None, memory: str = "balanced", bfloat16: bool = False
) -> sonic.SonicModel:
    """A model for a process of its own."""
    stay_on_a_node(RunOptions(memory, threads, bfloat16).threads_at_once)
    return sonic.load_model(bundle, threads=threads, memory=memory, bfloat16=bfloat16)


@click.command()
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
        model = load(bundle, threads, memory, bfloat16)
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
