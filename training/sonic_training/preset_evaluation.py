"""Compares a bundle's speed presets with the published sampler on held-out voices, sentences and people.

python -m sonic_training.preset_evaluation sonic-tiny
python -m sonic_training.preset_evaluation int8 --reference sonic-tiny --speed fast
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sonic.bundle.presets import EXACT_SPEED, PRESET_NAMES, SpeedName
from sonic.cli.errors import user_errors
from sonic.cli.tables import console
from sonic.diffusion.steps import Guidance, evaluations_per_window
from sonic.media.audio import load_sound
from sonic.model import SonicModel, load_model
from sonic.options import GenerationOptions
from sonic.plan import denoising_steps
from sonic.progress import ConsoleProgress
from sonic.storage.files import write_json
from sonic_calibration.recording.examples import Example
from sonic_convert.checkpoint.config import read_speeds
from sonic_convert.tuning.budget import Measures
from sonic_convert.tuning.judging import ExactClip, judge_plan, kept_exact_clip, with_presets
from sonic_convert.tuning.report import MEASURE_COLUMNS, measure_cells
from sonic_training.evaluation import HeldOutClip, held_out_clips


def evaluate_presets(
    model: SonicModel,
    reference: SonicModel,
    speeds: Sequence[SpeedName],
    options: GenerationOptions,
    clips: int,
    out: Path,
    progress: ConsoleProgress,
    most_seconds: float | None = None,
) -> dict[SpeedName, list[Measures]]:
    """Generate held-out clips with presets, and measure them beside the reference's `exact` ones.

    Args:
        model: the bundle whose presets are judged.
        reference: the bundle that generates the exact clips; the same, or the full-precision one.
        speeds: the presets.
        options: of the clips, such as guidance scales.
        clips: how many, of 2 to 8 seconds.
        out: folder of the inputs and of the exact clips, which a later run takes from there.
        progress: shows the clips.
        most_seconds: how much of each clip to use, None for all.

    Returns:
        The measures of every clip, by preset.

    Raises:
        BundleError: a bundle cannot be run.
        InputError: a speech synthesizer is not installed.
        OutputError: the folder cannot be written.
    """
    held_out = held_out_clips(out / "inputs", clips)
    measures: dict[SpeedName, list[Measures]] = {name: [] for name in speeds}
    with progress.stage("held-out clips", clips * (1 + len(speeds))) as advance:
        for clip in held_out:
            exact = _exact_clip(reference, clip, _cut(options, clip, most_seconds), out)
            advance()
            for name in speeds:
                found, _ = judge_plan(model, model.manifest.speeds.presets[name], exact)
                measures[name].append(found)
                advance()
    return measures


def presets_table(
    model: SonicModel,
    options: GenerationOptions,
    measures: dict[SpeedName, list[Measures]],
    title: str,
) -> Table:
    """Means over the clips, by preset."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    columns = ("preset", "evaluations", "fewer", MEASURE_COLUMNS[0], "worst", *MEASURE_COLUMNS[1:])
    for column in columns:
        table.add_column(column, justify="left" if column == "preset" else "right")
    exact = _evaluations(model, options, EXACT_SPEED)
    for name, clips in measures.items():
        count = _evaluations(model, options, name)
        similarity, *others = measure_cells(Measures.mean(clips))
        table.add_row(
            name,
            f"{count} of {exact}",
            f"{exact / count:.1f} x",
            similarity,
            f"{min(clip.ssim for clip in clips):.4f}",
            *others,
        )
    return table


def _cut(options: GenerationOptions, clip: HeldOutClip, most_seconds: float | None) -> GenerationOptions:
    seconds = load_sound(clip.speech).duration_seconds
    return (
        options
        if most_seconds is None or most_seconds >= seconds
        else replace(options, duration=most_seconds)
    )


def _evaluations(model: SonicModel, options: GenerationOptions, speed: SpeedName) -> int:
    return evaluations_per_window(denoising_steps(model.manifest, replace(options, speed=speed)))


def _exact_clip(model: SonicModel, clip: HeldOutClip, options: GenerationOptions, out: Path) -> ExactClip:
    """A clip with the published sampler, generated at most once for a bundle and options."""
    key = json.dumps([[file.sha256 for file in model.manifest.files], asdict(options)])
    folder = out / f"exact-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    path = folder / f"{clip.portrait.stem}.npy"
    return kept_exact_clip(model, Example(clip.portrait, clip.speech), options, path, clip.face_box)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle")
@click.option("--reference", help="The bundle of the exact clips, such as the full-precision one [BUNDLE].")
@click.option(
    "--presets",
    type=click.Path(path_type=Path),
    help="Presets of 'sonic-convert tune --save' [the bundle's].",
)
@click.option(
    "--speed", "speeds", type=click.Choice(PRESET_NAMES), multiple=True, help="May be repeated [all]."
)
@click.option("--image-guidance", type=float, help="Guidance scale of the image [the bundle's].")
@click.option("--audio-guidance", type=float, help="Guidance scale of the audio [the bundle's].")
@click.option(
    "--clips",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Number of held-out clips of 2 to 8 s.",
)
@click.option("--seconds", type=float, help="Use at most so many seconds of each clip [all].")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("build/preset-evaluation"),
    show_default=True,
    help="Folder of inputs, exact clips and results.json.",
)
def main(
    bundle: str,
    reference: str | None,
    presets: Path | None,
    speeds: tuple[SpeedName, ...],
    image_guidance: float | None,
    audio_guidance: float | None,
    clips: int,
    seconds: float | None,
    out: Path,
) -> None:
    """Evaluate the speed presets of BUNDLE on held-out voices, sentences and people."""
    with user_errors():
        model = load_model(bundle)
        if presets is not None:
            model = with_presets(model, read_speeds(presets))
        options = GenerationOptions(image_guidance=image_guidance, audio_guidance=audio_guidance)
        judged_by = model if reference is None else load_model(reference)
        found = evaluate_presets(
            model, judged_by, speeds or PRESET_NAMES, options, clips, out, ConsoleProgress(), seconds
        )
        scales = Guidance.of(model.constants.sampler, image_guidance, audio_guidance)
        title = f"{bundle}: {clips} held-out clips, guidance {scales.image[0]:g} and {scales.audio[0]:g}"
        console().print(presets_table(model, options, found, title))
        write_json(out / "results.json", {name: list(map(asdict, one)) for name, one in found.items()})


if __name__ == "__main__":
    main()
