"""``sonic-convert tune``: find a bundle's speed presets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from sonic.bundle.bundle import Bundle
from sonic.bundle.presets import SPEED_NAMES, SpeedName, SpeedPresets
from sonic.bundle.store import find_bundle, open_bundle
from sonic.cli.errors import user_errors
from sonic.cli.options import PATH, load_for_command, run_options, with_options
from sonic.cli.tables import console
from sonic.errors import InputError
from sonic.options import GenerationOptions, RunOptions
from sonic.progress import ConsoleProgress
from sonic.storage.files import write_json
from sonic_calibration.recording.examples import BUILT_IN, read_examples
from sonic_convert.bundle_writer import write_manifest
from sonic_convert.checkpoint.config import read_speeds


@click.command()
@click.argument("bundle")
@click.option(
    "--examples",
    type=PATH,
    default=BUILT_IN,
    help="Folder of portraits and speech: two to choose by, a third to try on [the built-in ones].",
)
@with_options(
    GenerationOptions, "clip", only=("duration", "min_resolution", "image_guidance", "audio_guidance")
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="[PRESET:]LIMITS",
    help="What a preset may lose, such as fast:ssim=0.99,lip=0.02,amplitude=0.1; may be repeated.",
)
@click.option(
    "--default",
    type=click.Choice(SPEED_NAMES),
    default="balanced",
    show_default=True,
    help="The preset of clips for which none is chosen.",
)
@click.option("--work", type=PATH, help="Folder of intermediate results and of the report [BUNDLE.tune].")
@click.option("--save", type=PATH, help="Write the presets to this JSON file, and leave the bundle as it is.")
@click.option("--presets", "given", type=PATH, help="Take the presets from such a file, without tuning.")
@run_options
def tune(
    bundle: str,
    examples: Path,
    clip: GenerationOptions,
    budgets: tuple[str, ...],
    default: SpeedName,
    work: Path | None,
    save: Path | None,
    given: Path | None,
    run: RunOptions,
) -> None:
    """Find the speed presets of BUNDLE: the cheapest plans whose videos stay close to 'exact'.

    Generates three short clips with the published sampler and about ten plans; an interrupted run resumes.
    A table, numbers and pictures are written to the work folder, the presets to the bundle's manifest.
    """
    with user_errors():
        found = find_bundle(bundle)
        if given is not None:
            if not given.is_file():
                raise InputError(f"{given} does not exist; give a file of 'sonic-convert tune --save'")
            _write_presets(open_bundle(found), read_speeds(given))
            click.echo(f"{found}: presets of {given}")
            return
        if save is None and (clip.image_guidance is not None or clip.audio_guidance is not None):
            raise InputError(
                "presets for other guidance scales than the bundle's do not belong into it; give --save FILE"
            )
        from sonic_convert.tuning.budget import parse_budgets
        from sonic_convert.tuning.cost import describe_cost
        from sonic_convert.tuning.report import tuning_table, write_tuning
        from sonic_convert.tuning.tune import Tuner, TuningOptions

        options = TuningOptions(clip, parse_budgets(budgets), default)
        work = work or Path(f"{found}.tune")
        model = load_for_command(found, run)
        tuner = Tuner(model, read_examples(examples), options, work, ConsoleProgress())
        click.echo(describe_cost(model, tuner), err=True)
        tuning = tuner.run()
        frames = {"exact": tuner.frames_of(None)}
        frames |= {name: tuner.frames_of(tuning.chosen[name].preset) for name in tuning.speeds.presets}
        console().print(tuning_table(tuning))
        files = write_tuning(work, tuning, frames)
        click.echo(f"report: {', '.join(map(str, files))}")
        if save is not None:
            write_json(save, tuning.speeds.to_json())
            click.echo(f"presets: {save}")
        else:
            _write_presets(model.engine.bundle, tuning.speeds)
            click.echo(f"presets: {found}")


def _write_presets(bundle: Bundle, speeds: SpeedPresets) -> None:
    write_manifest(bundle.directory, replace(bundle.manifest, speeds=speeds))
