"""The commands of ``sonic-convert`` that make bundles: convert, calibrate, sensitivity, quantize, compare."""

from __future__ import annotations

from pathlib import Path

import click

from sonic.cli.errors import user_errors
from sonic.cli.tables import console
from sonic.progress import ConsoleProgress
from sonic_convert.checkpoint.layout import Variant
from sonic_convert.cli.options import (
    PATH,
    PRECISION_HELP,
    VARIANT,
    ClipArguments,
    QuantizationArguments,
    RecordingArguments,
    clip_options,
    quantization_options,
    recording_options,
)
from sonic_convert.cli.tables import conversion_table, quantization_table


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument("bundle", type=PATH)
@click.option("--precision", default="fp32", show_default=True, help=PRECISION_HELP)
@click.option("--work", type=PATH, help="Folder of intermediate results [BUNDLE.work].")
@VARIANT
@recording_options
@quantization_options
def convert(
    checkpoint: Path,
    bundle: Path,
    precision: str,
    work: Path | None,
    variant: Variant,
    recording: RecordingArguments,
    quantization: QuantizationArguments,
) -> None:
    """Convert CHECKPOINT to BUNDLE: export, simplify, fuse, check, quantize; an interrupted run resumes."""
    with user_errors():
        from sonic_convert.checkpoint.checkpoint import Checkpoint

        Checkpoint.open(checkpoint, variant)  # before the imports that take most of the first seconds
        progress = ConsoleProgress()
        if precision == "fp32":
            from sonic_convert.conversion import convert as run

            conversion = run(checkpoint, bundle, variant, work, progress)
            console().print(conversion_table(conversion, bundle))
            return
        from sonic_convert.quantization.pipeline import convert_reduced

        reduction = quantization.reduction(precision, recording)
        manifest = convert_reduced(checkpoint, bundle, reduction, variant, work, progress)
        console().print(quantization_table(manifest, bundle))


@click.command()
@click.argument("source", type=PATH)
@click.argument("bundle", type=PATH)
@click.option("--precision", default="int8", show_default=True, help=PRECISION_HELP)
@click.option("--work", type=PATH, help="Folder of intermediate results [BUNDLE.work].")
@recording_options
@quantization_options
def quantize(
    source: Path,
    bundle: Path,
    precision: str,
    work: Path | None,
    recording: RecordingArguments,
    quantization: QuantizationArguments,
) -> None:
    """Make BUNDLE of another precision from SOURCE, a full-precision bundle; calibrates where necessary."""
    with user_errors():
        from sonic.bundle.store import find_bundle
        from sonic_convert.quantization.pipeline import reduce_bundle

        reduction = quantization.reduction(precision, recording)
        manifest = reduce_bundle(find_bundle(source), bundle, reduction, work, ConsoleProgress())
        console().print(quantization_table(manifest, bundle))


@click.command()
@click.argument("source", type=PATH)
@click.argument("calibration", type=PATH)
@click.option("--precision", default="int8", show_default=True, help=PRECISION_HELP)
@click.option("--work", type=PATH, help="Folder of recordings [CALIBRATION.work].")
@recording_options
def calibrate(
    source: Path, calibration: Path, precision: str, work: Path | None, recording: RecordingArguments
) -> None:
    """Record examples with SOURCE and write the statistics of its layers to CALIBRATION (.npz); resumes."""
    with user_errors():
        from sonic.bundle.store import find_bundle
        from sonic_convert.quantization.plan import find_plan
        from sonic_convert.quantization.quantize import calibrate_bundle

        found, recordings = calibrate_bundle(
            find_bundle(source),
            recording.read_examples(),
            recording.options,
            calibration,
            find_plan(precision).quantized,
            work or calibration.with_name(f"{calibration.name}.work"),
            ConsoleProgress(),
        )
        for submodel, tensors in found.tensors.items():
            click.echo(f"{submodel}: {len(tensors)} tensors of {len(recordings.samples(submodel))} calls")
        click.echo(f"{calibration}: {found.digest[:16]}")


@click.command()
@click.argument("source", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--precision", default="int8", show_default=True, help=PRECISION_HELP)
@click.option("--unit", type=click.Choice(["layer", "block"]), default="block", show_default=True)
@click.option(
    "--tried-calls",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Recorded calls that every unit is tried on.",
)
@click.option("--work", type=PATH, help="Folder of intermediate results [FOLDER/work].")
@recording_options
def sensitivity(
    source: Path,
    folder: Path,
    precision: str,
    unit: str,
    tried_calls: int,
    work: Path | None,
    recording: RecordingArguments,
) -> None:
    """Measure what quantizing each layer or block of SOURCE changes; a table and a plot go to FOLDER."""
    with user_errors():
        from sonic.bundle.store import find_bundle
        from sonic_convert.quantization.pipeline import measure_bundle_sensitivity
        from sonic_convert.quantization.plan import find_plan
        from sonic_convert.quantization.report import write_sensitivity

        found = measure_bundle_sensitivity(
            find_bundle(source),
            find_plan(precision),
            recording.read_examples(),
            recording.options,
            work or folder / "work",
            unit,
            tried_calls,
            ConsoleProgress(),
        )
        for written in write_sensitivity(folder, found):
            click.echo(str(written))


@click.command()
@click.argument("reference", type=PATH)
@click.argument("bundle", type=PATH)
@clip_options
@click.option("--json", "report_path", type=PATH, help="Write the numbers to this file.")
@click.option("--record/--no-record", default=False, help="Record the result in BUNDLE's manifest [off].")
def compare(
    reference: Path, bundle: Path, clips: ClipArguments, report_path: Path | None, record: bool
) -> None:
    """Compare the videos of BUNDLE with those of REFERENCE, generated from the same noise."""
    with user_errors():
        from sonic.bundle.store import find_bundle
        from sonic_convert.quantization import comparison

        found = find_bundle(bundle)
        compared = comparison.compare_bundles(
            find_bundle(reference), found, clips.read_examples(), clips.clip, ConsoleProgress()
        )
        console().print(comparison.comparison_table(compared, f"{bundle} compared with {reference}"))
        if report_path is not None:
            comparison.write_comparison(report_path, compared)
        if record:
            comparison.record_comparison(found, compared)


COMMANDS = (convert, quantize, calibrate, sensitivity, compare)
