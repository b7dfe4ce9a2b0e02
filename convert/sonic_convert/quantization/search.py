"""Searches which layers to leave in float32, so that a budget is kept.

Example:

    budget = parse_budget("psnr=35")
    found = search(source, options, calibration, recordings, budget, examples, work)
    quantize_bundle(source, target, found.options, calibration)
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from sonic.bundle.store import open_bundle
from sonic.errors import InputError
from sonic.options import DEFAULT_CLIP, GenerationOptions
from sonic.progress import NoProgress, Progress
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.recording.examples import Example
from sonic_calibration.recording.recordings import Recordings
from sonic_convert.quantization.comparison import Reference, compare_with, generate_reference
from sonic_convert.quantization.plan import PrecisionPlan
from sonic_convert.quantization.quantize import QuantizationOptions, quantize_bundle
from sonic_convert.quantization.sensitivity import Sensitivity, measure_sensitivity


@dataclass(frozen=True)
class Budget:
    """What quantization may cost: a PSNR of at least `psnr_db`, or the share of layers left in float32."""

    psnr_db: float | None = None
    layer_share: float | None = None


def parse_budget(text: str) -> Budget:
    """Read ``psnr=35`` (dB against full precision) or ``layers=5%``.

    Raises:
        InputError: it is neither.
    """
    match = re.fullmatch(r"psnr=(\d+(?:\.\d+)?)|layers=(\d+(?:\.\d+)?)%", text.strip())
    if match is None:
        raise InputError(f"the budget is {text!r}, but should be psnr=35 (dB) or layers=5% (in float32)")
    if match[1] is not None:
        return Budget(psnr_db=float(match[1]))
    return Budget(layer_share=float(match[2]) / 100)


@dataclass(frozen=True)
class SearchResult:
    """The options with exceptions in their plan, and the sensitivities of all units, the largest first."""

    options: QuantizationOptions
    sensitivities: tuple[Sensitivity, ...]


def search(
    source: Path,
    options: QuantizationOptions,
    calibration: Calibration,
    recordings: Recordings,
    budget: Budget,
    examples: Sequence[Example],
    work: Path,
    settings: GenerationOptions = DEFAULT_CLIP,
    unit: str = "block",
    progress: Progress | None = None,
) -> SearchResult:
    """Leave the most sensitive units in float32 until the budget is kept.

    With a share of layers, they are chosen by their sensitivity alone. With a PSNR, trial bundles are made
    and clips generated: first without exceptions, then with twice as many each time, then by bisection.

    Args:
        source: the full-precision bundle.
        options: what the bundle should be.
        calibration, recordings: of the source.
        budget: what quantization may cost.
        examples: clips that a PSNR is measured on; the worst clip counts.
        work: folder from which an interrupted search resumes.
        settings: of these clips.
        unit: "layer" or "block".
        progress: shows what runs.

    Raises:
        InputError: the PSNR is not reached even with every unit in float32.
    """
    progress = progress or NoProgress()
    opened = open_bundle(source, check_digests=False)
    found: list[Sensitivity] = []
    for submodel in calibration.tensors:
        if options.plan.quantizes(submodel):
            found += measure_sensitivity(
                opened, submodel, recordings, calibration, options.plan, options.refined, unit,
                work=work / "sensitivity", progress=progress,
            )  # fmt: skip
    found.sort(key=lambda one: -one.error)
    measured: float | None = None
    if budget.layer_share is not None:
        total = sum(len(one.layers) for one in found)
        count = _units_of(found, math.floor(total * budget.layer_share))
    else:
        assert budget.psnr_db is not None
        work.mkdir(parents=True, exist_ok=True)
        reference = generate_reference(source, examples, settings, progress)
        with tempfile.TemporaryDirectory(prefix="trial-", dir=work) as trials:

            @cache
            def psnr(units: int) -> float:
                tried = replace(options, plan=_with_floats(options.plan, found[:units]))
                return _measure(source, tried, calibration, reference, Path(trials), progress)

            wanted = budget.psnr_db
            fewest = _fewest(len(found), lambda units: psnr(units) >= wanted)
            if fewest is None:
                raise InputError(
                    f"the budget of {budget.psnr_db:g} dB is not kept with every layer of "
                    f"{', '.join(calibration.tensors)} in float32 ({psnr(len(found)):.1f} dB); lower it, or "
                    "choose another precision for the other submodels"
                )
            count, measured = fewest, psnr(fewest)
    plan = _with_floats(options.plan, found[:count])
    notes = {
        "budget": asdict(budget),
        "psnr_db_of_examples": measured,
        "kept_in_float": [one.unit for one in found[:count]],
        "sensitivity": [
            {"submodel": one.submodel, "unit": one.unit, "parameters": one.parameters, "error": one.error}
            for one in found
        ],
    }
    return SearchResult(replace(options, plan=plan, notes=notes), tuple(found))


def _units_of(found: Sequence[Sensitivity], layers: int) -> int:
    """How many of the first units have at most `layers` layers together."""
    total = 0
    for count, one in enumerate(found):
        total += len(one.layers)
        if total > layers:
            return count
    return len(found)


def _fewest(most: int, keeps: Callable[[int], bool]) -> int | None:
    """The smallest count that keeps the budget, by doubling and bisection; None if none does."""
    low, high = -1, 0
    while not keeps(high):
        if high == most:
            return None
        low, high = high, min(max(1, 2 * high), most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


def _with_floats(plan: PrecisionPlan, units: Sequence[Sensitivity]) -> PrecisionPlan:
    for one in units:
        plan = plan.with_exceptions(one.submodel, one.layers, "fp32")
    return plan


def _measure(
    source: Path,
    options: QuantizationOptions,
    calibration: Calibration,
    reference: Reference,
    folder: Path,
    progress: Progress,
) -> float:
    """The worst clip's PSNR with a bundle; graphs that the next trial leaves unchanged are reused."""
    trial = folder / "trial"
    quantize_bundle(source, trial, options, calibration, folder / "graphs", verifiable=False)
    return compare_with(reference, trial, progress).worst_psnr_db
