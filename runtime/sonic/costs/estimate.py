"""Estimating what a clip will cost: operations, seconds, memory, disk and energy.

    plan = plan_square_clip(model.manifest, GenerationOptions(duration=60.0, speed="fast"))
    estimate = estimate_clip(model.manifest, plan, MACHINES["kunpeng920"])

Operations follow from the counts in the bundle (:mod:`sonic.bundle.work`), seconds from the throughput that a
machine reaches in float32, and from how much faster or slower it is in the precision of the bundle's layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sonic.bundle.manifest import Manifest, SubmodelInfo
from sonic.costs.machines import Machine, efficiency_key
from sonic.errors import BundleError
from sonic.execution import Resources, choose_execution, resources_at_hand
from sonic.host import resident_bytes
from sonic.memory import peak_memory, temporary_disk_bytes
from sonic.options import AUTOMATIC, RunOptions
from sonic.plan import ClipPlan

_ATTENTION = "attention"  # a kind of operator in `Work.flop`


@dataclass(frozen=True)
class Estimate:
    """What a clip costs on a machine.

    Attributes:
        flop: floating-point operations, by submodel.
        seconds: time, by submodel and for "encoding".
        peak_bytes: peak resident memory.
        peak_stage: the submodel at which memory peaks.
        disk_bytes: temporary files while `sonic generate` generates the clip. Where frames are kept before
            they are encoded (batches, lip-sync correction, `SonicModel.generate`), 3 bytes per pixel more.
        joules: energy of the processor.
        projected: whether the time of a submodel that denoises or decodes was not measured on the machine.
    """

    flop: dict[str, float]
    seconds: dict[str, float]
    peak_bytes: float
    peak_stage: str
    disk_bytes: float
    joules: float
    projected: bool

    @property
    def total_seconds(self) -> float:
        """Time from the start to the finished file."""
        return sum(self.seconds.values())


def estimate_clip(
    manifest: Manifest, plan: ClipPlan, machine: Machine, run: RunOptions = AUTOMATIC
) -> Estimate:
    """Estimate what a clip costs.

    Args:
        manifest: the bundle's.
        plan: the clip's.
        machine: the machine that it runs on.
        run: how its submodels run.

    Raises:
        BundleError: the bundle was made by a version that did not count its work.
    """
    flop: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for calls in plan.submodel_calls:
        info = manifest.submodels[calls.submodel]
        if info.work is None:
            raise BundleError(
                f"the bundle {manifest.name} does not say what its submodels compute; convert the "
                "checkpoint again with this version"
            )
        operations = {kind: calls.count * each for kind, each in info.work.flop_of(calls.sizes).items()}
        shares = layer_shares(manifest, calls.submodel)
        taken = _seconds(operations, info, shares, machine)
        flop[calls.submodel] = flop.get(calls.submodel, 0.0) + sum(operations.values())
        seconds[calls.submodel] = seconds.get(calls.submodel, 0.0) + taken
    pixels = plan.size.height * plan.size.width * plan.shown_frames
    seconds["encoding"] = pixels / 1e6 * machine.encode_seconds_per_megapixel
    here = resources_at_hand()
    there = Resources(machine.cores, machine.memory_gigabytes * 1e9) if machine.projected else here
    execution = choose_execution(manifest, [plan], run, there)
    submodel, needed = peak_memory(manifest, plan, execution.calls_at_once)
    return Estimate(
        flop=flop,
        seconds=seconds,
        peak_bytes=resident_bytes() + needed,
        peak_stage=submodel,
        disk_bytes=temporary_disk_bytes(manifest, plan),
        joules=sum(seconds.values()) * machine.watts,
        projected=not all(
            machine.has_measured(calls.submodel, manifest.submodels[calls.submodel].precision)
            for stage in plan.stages
            if stage.several_clips
            for calls in stage.calls
        ),
    )


def layer_shares(manifest: Manifest, submodel: str) -> dict[str, float]:
    """By precision, the share of a submodel's layers, in parameters.

    A bundle of a precision such as int8 keeps some layers in others, and its manifest counts them.
    """
    facts = manifest.quantization.get("layers", {}).get(submodel, {})
    counts: dict[str, float] = facts.get("parameters") or {manifest.submodels[submodel].precision: 1.0}
    total = sum(counts.values())
    return {precision: count / total for precision, count in counts.items()}


def _seconds(
    operations: Mapping[str, float], info: SubmodelInfo, shares: Mapping[str, float], machine: Machine
) -> float:
    """Time of operations, by kind, of a submodel whose layers have these shares of precisions."""
    if machine.has_measured(info.name, info.precision):
        key = efficiency_key(info.name, info.precision)
        return sum(operations.values()) / machine.flop_per_second(key)
    # Products of activations have no weights: they stay in float32.
    attention = operations.get(_ATTENTION, 0.0)
    slowness = sum(share / machine.layer_speed.get(precision, 1.0) for precision, share in shares.items())
    return (attention + (sum(operations.values()) - attention) * slowness) / machine.flop_per_second(
        info.name
    )
