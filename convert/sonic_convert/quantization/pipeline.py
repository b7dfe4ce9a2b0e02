"""Converts a checkpoint to a bundle of any precision in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sonic.bundle.manifest import Manifest
from sonic.bundle.store import open_bundle
from sonic.errors import InputError
from sonic.progress import Progress
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.recording.examples import BUILT_IN, Example, read_examples
from sonic_calibration.recording.recordings import RecordingOptions
from sonic_convert.bundle_writer import making
from sonic_convert.checkpoint.layout import Variant
from sonic_convert.conversion import convert
from sonic_convert.quantization.plan import PrecisionPlan
from sonic_convert.quantization.quantize import QuantizationOptions, calibrate_bundle, quantize_bundle
from sonic_convert.quantization.search import Budget, search
from sonic_convert.quantization.sensitivity import Sensitivity, measure_sensitivity

_BUDGET_EXAMPLES = 2  # how many examples a budget is measured on


@dataclass(frozen=True)
class ReducedPrecision:
    """How a bundle is reduced to a smaller precision.

    Attributes:
        quantization: precisions, and how ranges become integers.
        recording: how much of the examples is recorded.
        examples: a folder of portraits and speech; the built-in ones by default.
        calibration: a calibration file to use; None collects a calibration from the examples.
        budget: what quantization may cost; None keeps the plan as it is.
    """

    quantization: QuantizationOptions
    recording: RecordingOptions = RecordingOptions()
    examples: Path = BUILT_IN
    calibration: Path | None = None
    budget: Budget | None = None


def reduce_bundle(
    source: Path,
    target: Path,
    options: ReducedPrecision,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Calibrate where it is needed, search where there is a budget, and quantize.

    Args:
        source: the full-precision bundle.
        target: the bundle to write.
        options: how.
        work: folder of recordings, the calibration and finished graphs, from which an interrupted call
            resumes; TARGET.work by default.
        progress: shows the stages.

    Raises:
        InputError: the source, an example or a file cannot be used, or the budget is not kept.
        OutputError: the bundle cannot be written.
    """
    with making(target, work) as folder:
        return _reduce(source, target, options, folder, progress)


def _reduce(
    source: Path, target: Path, options: ReducedPrecision, work: Path, progress: Progress | None
) -> Manifest:
    quantization, calibration = options.quantization, None
    submodels = quantization.plan.quantized
    if options.calibration is not None and options.budget is not None:
        raise InputError(
            "a budget is searched with the recordings that a calibration is collected from; leave the "
            "calibration's file out, and give the examples"
        )
    if options.budget is not None and not submodels:
        raise InputError(
            f"the precision {quantization.plan.name!r} rounds none of the activations that a budget could "
            "spare; leave the budget out, or choose int8"
        )
    if submodels:
        if options.calibration is not None:
            calibration = Calibration.load(options.calibration)
        else:
            examples = read_examples(options.examples)
            calibration, recordings = calibrate_bundle(
                source, examples, options.recording, work / "calibration.npz", submodels, work, progress
            )
            if options.budget is not None:
                quantization = search(
                    source, quantization, calibration, recordings, options.budget,
                    examples[:_BUDGET_EXAMPLES], work / "search", options.recording.clip, progress=progress,
                ).options  # fmt: skip
    return quantize_bundle(source, target, quantization, calibration, work / "graphs", progress)


def measure_bundle_sensitivity(
    source: Path,
    plan: PrecisionPlan,
    examples: Sequence[Example],
    recording: RecordingOptions,
    work: Path,
    unit: str = "block",
    calls: int = 4,
    progress: Progress | None = None,
) -> list[Sensitivity]:
    """Calibrate a bundle, and measure the sensitivity of every unit that a plan quantizes.

    Args:
        source: the full-precision bundle.
        plan: the precisions to try.
        examples: portraits and speech.
        recording: how much of the examples is recorded.
        work: recordings, the calibration and finished units, from which an interrupted call resumes.
        unit: "layer" or "block".
        calls: how many recorded calls each unit is tried on.
        progress: shows the stages.

    Raises:
        InputError: the source or an example cannot be used, or the plan quantizes nothing.
        OutputError: a file cannot be written.
    """
    work.mkdir(parents=True, exist_ok=True)
    calibration, recordings = calibrate_bundle(
        source, examples, recording, work / "calibration.npz", plan.quantized, work, progress
    )
    bundle = open_bundle(source, check_digests=False)
    return [
        sensitivity
        for submodel in plan.quantized
        for sensitivity in measure_sensitivity(
            bundle, submodel, recordings, calibration, plan, unit=unit, calls=calls, work=work,
            progress=progress,
        )
    ]  # fmt: skip


def convert_reduced(
    checkpoint: Path,
    target: Path,
    options: ReducedPrecision,
    variant: Variant = "auto",
    work: Path | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Convert a checkpoint to full precision in the work folder, and reduce that; see `reduce_bundle`."""
    with making(target, work) as folder:
        source = folder / "fp32"
        convert(checkpoint, source, variant, folder, progress, name=target.name)
        return reduce_bundle(source, target, options, folder / "reduced", progress)
