"""The commands of ``sonic-convert`` that make bundles: convert, calibrate, sensitivity, quantize, compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sonic.cli.errors import user_errors
from sonic.progress import ConsoleProgress
from sonic_calibration.recording.examples import BUILT_IN, ClipSettings, read_examples

PATH = click.Path(path_type=Path)
VARIANT = click.option(
    "--variant",
    type=click.Choice(["auto", "fp16", "fp32"]),
    default="auto",
    show_default=True,
    help="Which weights of the VAE and the image encoder to read.",
)
_PRECISION_HELP = "fp32, fp16, fp16-native, int8, int8-max, or a .toml file of precisions by layer."


def _stacked(command: Any, options: Sequence[Any]) -> Any:
    """A command with click's options, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def _clip_options(command: Any) -> Any:
    """Which clips are generated."""
    return _stacked(command, [
        click.option("--examples", type=PATH, default=BUILT_IN,
                     help="Folder of portraits and speech [the built-in ones]."),
        click.option("--duration", type=float, help="Seconds of each recording to use [all]."),
        click.option("--resolution", type=int, help="Short side in pixels [the bundle's]."),
        click.option("--steps", type=int, help="Denoising steps [the bundle's]."),
    ])  # fmt: skip


def _recording_options(command: Any) -> Any:
    """What is generated to calibrate, and how much of it is kept."""
    return _stacked(_clip_options(command), [
        click.option("--calls", type=int, default=8, show_default=True,
                     help="Calls of a submodel that are kept of an example."),
        click.option("--gigabytes", type=float, default=2.0, show_default=True,
                     help="Disk for the recordings."),
    ])  # fmt: skip


def _quantization_options(command: Any) -> Any:
    """How ranges become integers."""
    from sonic_calibration.ranges.statistics import METHODS
    from sonic_convert.quantization.profiles import PROFILES
    from sonic_convert.quantization.qdq import ISAS

    return _stacked(command, [
        click.option("--isa", type=click.Choice(ISAS), default="x86", show_default=True,
                     help="Signed activations for aarch64, unsigned for x86."),
        click.option("--profile", type=click.Choice(list(PROFILES)), default="onnxruntime", show_default=True,
                     help="The engine that the graphs are for."),
        click.option("--method", type=click.Choice(METHODS), default="mse", show_default=True,
                     help="How a range follows from what was seen."),
        click.option("--smooth/--no-smooth", default=True, help="SmoothQuant for linear layers [on]."),
        click.option("--budget", help="psnr=35 (dB) or layers=5%: leave sensitive layers in float32."),
        click.option("--calibration", type=PATH, help="A file of 'sonic-convert calibrate'."),
    ])  # fmt: skip


def _recording(calls: int, gigabytes: float, duration: Any, resolution: Any, steps: Any) -> Any:
    from sonic_calibration.recording.recordings import RecordingOptions

    return RecordingOptions(calls, int(gigabytes * 1e9), duration, resolution, steps)


def _reduced(precision: str, options: dict[str, Any]) -> Any:
    """The options of `reduce_bundle` from those of a command line."""
    from sonic_convert.quantization.pipeline import ReducedPrecision
    from sonic_convert.quantization.plan import find_plan
    from sonic_convert.quantization.qdq import QdqOptions
    from sonic_convert.quantization.quantize import QuantizationOptions
    from sonic_convert.quantization.search import parse_budget

    qdq = QdqOptions(isa=options["isa"], method=options["method"], smooth=options["smooth"])
    return ReducedPrecision(
        QuantizationOptions(find_plan(precision), qdq, options["profile"]),
        _recording(*(options[name] for name in ("calls", "gigabytes", "duration", "resolution", "steps"))),
        options["examples"],
        options["calibration"],
        None if options["budget"] is None else parse_budget(options["budget"]),
    )


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument("bundle", type=PATH)
@click.option("--precision", default="fp32", show_default=True, help=_PRECISION_HELP)
@click.option("--work", type=PATH, help="Folder of intermediate results [BUNDLE.work].")
@VARIANT
@_recording_options
@_quantization_options
def convert(
    checkpoint: Path, bundle: Path, precision: str, work: Path | None, variant: str, **options: Any
) -> None:
    """Convert CHECKPOINT to BUNDLE: export, simplify, fuse, check, quantize; resumes what is done."""
    with user_errors():
        from sonic_convert.conversion import convert as run

        progress = ConsoleProgress()
        if precision == "fp32":
            _print_conversion(run(checkpoint, bundle, variant, work, progress), bundle)
            return
        from sonic_convert.quantization.pipeline import convert_reduced

        reduced = _reduced(precision, options)
        _print_quantized(convert_reduced(checkpoint, bundle, reduced, variant, work, progress), bundle)


@click.command()
@click.argument("source", type=PATH)
@click.argument("bundle", type=PATH)
@click.option("--precision", default="int8", show_default=True, help=_PRECISION_HELP)
@click.option("--work", type=PATH, help="Folder of intermediate results [BUNDLE.work].")
@_recording_options
@_quantization_options
def quantize(source: Path, bundle: Path, precision: str, work: Path | None, **options: Any) -> None:
    """Make BUNDLE of another precision from SOURCE, a full-precision bundle; calibrates where it has to."""
    with user_errors():
        from sonic.bundle.store import find_bundle
        from sonic_convert.quantization.pipeline import reduce_bundle

        reduced = _reduced(precision, options)
        _print_quantized(reduce_bundle(find_bundle(source), bundle, reduced, work, ConsoleProgress()), bundle)


@click.command()
@click.argument("source", type=PATH)
@click.argument("calibration", type=PATH)
@click.option("--precision", default="int8", show_default=True, help=_PRECISION_HELP)
@click.option("--work", type=PATH, help="Folder of recordings [CALIBRATION.work].")
@_recording_options
def calibrate(
    source: Path, calibration: Path, precision: str, work: Path | None, examples: Path, **options: Any
) -> None:
    """Record examples with SOURCE and write what its layers see to CALIBRATION (.npz); resumes."""
    with user_errors():
        from sonic.bundle.store import find_bundle
        from sonic_convert.quantization.plan import find_plan
        from sonic_convert.quantization.quantize import calibrate_bundle

        found, recordings = calibrate_bundle(
            find_bundle(source), read_examples(examples), _recording(**options), calibration,
            find_plan(precision).quantized, work or calibration.with_name(f"{calibration.name}.work"),
            ConsoleProgress(),
        )  # fmt: skip
        for submodel, tensors in found.tensors.items():
            click.echo(f"{submodel}: {len(tensors)} tensors of {len(recordings.samples(submodel))} calls")
        click.echo(f"{calibration}: {found.digest[:16]}")


@click.command()
@click.argument("source", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--precision", default="int8", show_default=True, help=_PRECISION_HELP)
@click.option("--unit", type=click.Choice(["layer", "block"]), default="block", show_default=True)
@click.option("--tried-calls", type=click.IntRange(1), default=4, show_default=True,
              help="Recorded calls that every unit is tried on.")  # fmt: skip
@click.option("--work", type=PATH, help="Folder of intermediate results [FOLDER/work].")
@_recording_options
def sensitivity(
    source: Path,
    folder: Path,
    precision: str,
    unit: str,
    tried_calls: int,
    work: Path | None,
    examples: Path,
    **options: Any,
) -> None:
    """Measure what rounding each layer or block of SOURCE changes; a table and a plot go to FOLDER."""
    with user_errors():
        from sonic.bundle.store import find_bundle, open_bundle
        from sonic_convert.quantization.plan import find_plan
        from sonic_convert.quantization.quantize import calibrate_bundle
        from sonic_convert.quantization.report import write_sensitivity
        from sonic_convert.quantization.sensitivity import measure_sensitivity

        plan, progress, path = find_plan(precision), ConsoleProgress(), find_bundle(source)
        work = work or folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        calibration, recordings = calibrate_bundle(
            path, read_examples(examples), _recording(**options), work / "calibration.npz",
            plan.quantized, work, progress,
        )  # fmt: skip
        opened = open_bundle(path, check_digests=False)
        found = [
            one
            for submodel in plan.quantized
            for one in measure_sensitivity(
                opened, submodel, recordings, calibration, plan, unit=unit, calls=tried_calls, work=work,
                progress=progress,
            )
        ]  # fmt: skip
        for written in write_sensitivity(folder, found):
            click.echo(str(written))


@click.command()
@click.argument("reference", type=PATH)
@click.argument("bundle", type=PATH)
@_clip_options
@click.option("--json", "report_path", type=PATH, help="Write the numbers to this file.")
@click.option("--record/--no-record", default=False, help="Note the result in BUNDLE's manifest [off].")
def compare(
    reference: Path,
    bundle: Path,
    examples: Path,
    duration: float | None,
    resolution: int | None,
    steps: int | None,
    report_path: Path | None,
    record: bool,
) -> None:
    """Hold the videos of BUNDLE against those of REFERENCE, from the same noise."""
    with user_errors():
        from sonic.bundle.store import find_bundle
        from sonic_convert.quantization import comparison as stage

        found, settings = find_bundle(bundle), ClipSettings(duration, resolution, steps)
        compared = stage.compare_bundles(
            find_bundle(reference), found, read_examples(examples), settings, ConsoleProgress()
        )
        Console().print(stage.comparison_table(compared, f"{bundle} against {reference}"))
        if report_path is not None:
            stage.write_comparison(report_path, compared)
        if record:
            stage.record_comparison(found, compared)


def _print_quantized(manifest: Any, bundle: Path) -> None:
    table = Table(title=f"{bundle}: {manifest.license}", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("submodel", "precision", "MB", "layers"):
        table.add_column(column, justify="right" if column == "MB" else "left", no_wrap=column != "layers")
    for name, info in manifest.submodels.items():
        layers = manifest.quantization["layers"][name].get("layers", {})
        counts = ", ".join(f"{count} {precision}" for precision, count in layers.items())
        table.add_row(name, info.precision, f"{info.bytes / 1e6:.1f}", counts)
    table.caption = f"{sum(file.bytes for file in manifest.files) / 1e6:,.1f} MB in all"
    Console().print(table)


def _print_conversion(conversion: Any, bundle: Path) -> None:
    table = Table(title=f"{bundle}: {conversion.manifest.license}", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("submodel", "nodes", "simplified", "fused", "MB", "rel. L2", "seconds", "peak GB"):
        first = column == "submodel"
        table.add_column(column, justify="left" if first else "right", no_wrap=True)
    for name, results in conversion.results.items():
        exported, simplified, fused, checked = (results[s] for s in ("export", "simplify", "fuse", "check"))
        table.add_row(
            name,
            str(exported.facts["nodes"]),
            str(simplified.facts["nodes"]),
            str(fused.facts["nodes"]),
            f"{conversion.manifest.submodels[name].bytes / 1e6:.1f}",
            f"{checked.facts['relative_l2']:.1e}",
            f"{sum(r.seconds for r in results.values()):.1f}",
            f"{max(r.peak_bytes for r in results.values()) / 1e9:.2f}",
        )
    golden = conversion.manifest.verification
    size = sum(file.bytes for file in golden.files)
    table.caption = f"golden vectors {size / 1e6:.1f} MB; their clip has a PSNR of {golden.clip.psnr_db:g} dB"
    Console().print(table)


COMMANDS = (convert, quantize, calibrate, sensitivity, compare)
