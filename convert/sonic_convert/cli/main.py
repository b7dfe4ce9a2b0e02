"""The ``sonic-convert`` command: thin wrappers around :mod:`sonic_convert`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import numpy as np

import sonic_convert
from sonic.cli.errors import user_errors
from sonic.cli.generate import OUTPUT, input_files
from sonic.cli.options import threads_option, with_options
from sonic.cli.tables import console
from sonic.diffusion.noise import load_noise
from sonic.media.checks import check_not_an_input
from sonic.media.video import Video, check_output_path, save_video
from sonic.model import ClipArguments
from sonic.options import GenerationOptions, RunOptions
from sonic.progress import ConsoleProgress
from sonic.schema import narrowed
from sonic_convert.checkpoint.layout import Variant
from sonic_convert.cli.convert import COMMANDS
from sonic_convert.cli.options import PATH, VARIANT
from sonic_convert.cli.release import release
from sonic_convert.cli.target import COMMANDS as TARGET_COMMANDS
from sonic_convert.cli.tune import tune

if TYPE_CHECKING:  # it imports PyTorch
    from sonic_convert.synth.checkpoint_writer import Dtype

ASSETS = Path(sonic_convert.__file__).with_name("assets")
#: What PyTorch's published pipeline has no equivalent of: both sides of a comparison use its sampler.
UNPUBLISHED = ("speed", "sigmas")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sonic_convert.__version__, package_name="sonic-convert")
def main() -> None:
    """Convert a Sonic checkpoint to a bundle that runs without PyTorch."""


@main.command()
@click.argument("out", type=PATH)
@click.option("--size", type=click.Choice(["small", "published"]), default="small", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
def synth(out: Path, size: Literal["small", "published"], seed: int, dtype: Dtype, overwrite: bool) -> None:
    """Write a checkpoint of random weights in the official layout."""
    with user_errors():
        from sonic_convert.synth.synthesize import synthesize

        with ConsoleProgress().stage(f"writing {out}", 1) as advance:
            synthesize(out, size, seed, dtype, overwrite)
            advance()


@main.command()
@click.argument("checkpoint", type=PATH)
@OUTPUT
@with_options(ClipArguments, "clip", but=UNPUBLISHED)
@threads_option
@VARIANT
def reference(checkpoint: Path, output: Path, clip: ClipArguments, run: RunOptions, variant: Variant) -> None:
    """Generate a video with PyTorch, as published."""
    with user_errors():
        import torch

        from sonic_convert.checkpoint.checkpoint import Checkpoint
        from sonic_convert.export.contents import check_contents
        from sonic_convert.parity.reference import TorchReference, write_dump

        check_not_an_input(output, input_files(clip))
        check_output_path(output)
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        opened = Checkpoint.open(checkpoint, variant)
        check_contents(opened, ConsoleProgress())
        noise = (
            clip.noise if clip.noise is None or isinstance(clip.noise, np.ndarray) else load_noise(clip.noise)
        )
        options = narrowed(clip, GenerationOptions)
        result = TorchReference(opened).generate(
            Path(clip.image), Path(clip.audio), options, noise, ConsoleProgress()
        )
        if clip.dump is not None:
            write_dump(result, clip.dump)
        rate = opened.constants.video.frame_rate_hz
        save_video(Video(result.interpolated, rate, result.sound), output)
        click.echo(f"{output}: {len(result.interpolated)} frames")


@main.command()
@click.argument("checkpoint", type=PATH)
@click.argument("bundle", type=PATH)
@click.option("--image", type=PATH, default=ASSETS / "portrait.png", help="Portrait [the demo's].")
@click.option("--audio", type=PATH, default=ASSETS / "speech.wav", help="Speech [the demo's].")
@click.option("--noise", type=PATH, help="Initial noise, .npy float32 (frames, 4, H/8, W/8).")
@with_options(GenerationOptions, "options", but=(*UNPUBLISHED, "lip_sync_correction", "smooth_motion"))
@click.option("--json", "report_path", type=PATH, help="Write the numbers to this file.")
@click.option("--picture", type=PATH, help="Write the worst frame, side by side, to this PNG.")
@click.option(
    "--record/--no-record",
    default=True,
    show_default=True,
    help="Record the result in the bundle's manifest.",
)
@VARIANT
def parity(
    checkpoint: Path,
    bundle: Path,
    image: Path,
    audio: Path,
    noise: Path | None,
    options: GenerationOptions,
    report_path: Path | None,
    picture: Path | None,
    record: bool,
    variant: Variant,
) -> None:
    """Compare BUNDLE with PyTorch running CHECKPOINT; exits with 1 if a tolerance is exceeded."""
    with user_errors():
        from sonic.bundle.store import find_bundle
        from sonic_convert.parity import parity as stage

        directory = find_bundle(bundle)
        report = stage.measure_parity(
            checkpoint, directory, image, audio, options, noise, ConsoleProgress(), picture, variant
        )
        stage.print_report(report, console())
        if report_path is not None:
            stage.write_report(report, report_path)
        if record:
            stage.record(directory, report)
    if not report.passed:
        sys.exit(1)


@main.command()
@click.argument("video", type=PATH)
@click.option("--bundle", help="A bundle's name or path, whose face detector finds the face.")
@click.option("--face-box", help="x1,y1,x2,y2 of the face in pixels, in place of a bundle.")
@click.option("--portrait", type=PATH, help="The picture that the face is compared with.")
@click.option("--reference", type=PATH, help="Another video of the same size and length, to compare with.")
@click.option("--json", "report_path", type=PATH, help="Write the numbers to this file.")
@click.option("--sheet", type=PATH, help="Write a contact sheet to this PNG.")
def quality(
    video: Path,
    bundle: str | None,
    face_box: str | None,
    portrait: Path | None,
    reference: Path | None,
    report_path: Path | None,
    sheet: Path | None,
) -> None:
    """Measure the quality of VIDEO: lip sync, likeness, sharpness, flicker."""
    with user_errors():
        from sonic_calibration.quality import video_face
        from sonic_calibration.quality.contact_sheet import write_contact_sheet
        from sonic_calibration.quality.report import judge, quality_table, write_quality
        from sonic_calibration.quality.video_file import read_video

        box = video_face.parse_box(face_box, bundle)
        progress = ConsoleProgress()
        opened = read_video(video)
        if box is None:
            assert bundle is not None
            box = video_face.find_face(opened, bundle, str(video))
        _, height, width, _ = opened.shape
        picture = None if portrait is None else video_face.portrait_of_size(portrait, width, height)
        other = None if reference is None else read_video(reference)
        report = judge(opened, box, picture, other, progress=progress)
        console().print(quality_table(report, f"quality of {video.name}"))
        if report_path is not None:
            write_quality(report_path, report)
        if sheet is not None:
            write_contact_sheet(sheet, opened, box, title=video.name)


for command in (*COMMANDS, *TARGET_COMMANDS, tune, release):
    main.add_command(command)

if __name__ == "__main__":
    main()
