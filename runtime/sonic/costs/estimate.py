"""Estimating what a clip will cost: operations, seconds, memory, disk and energy.

    plan = plan_square_clip(model.manifest, GenerationOptions(duration=60.0, speed="fast"))
    estimate = estimate_clip(model.manifest, plan, MACHINES["kunpeng920"])

Operations follow from the counts in the bundle (:mod:`sonic.bundle.work`), seconds from the throughput that a
machine reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

from sonic.bundle.manifest import Manifest
from sonic.costs.machines import Machine
from sonic.errors import BundleError
from sonic.execution import Resources, choose_execution, resources_at_hand
from sonic.host import resident_bytes
from sonic.memory import peak_memory, temporary_disk_bytes
from sonic.options import AUTOMATIC, RunOptions
from sonic.plan import ClipPlan


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
    """

    flop: dict[str, float]
    seconds: dict[str, float]
    peak_bytes: float
    peak_stage: str
    disk_bytes: float
    joules: float

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
    for calls in plan.submodel_calls:
        work = manifest.submodels[calls.submodel].work
        if work is None:
            raise BundleError(
                f"the bundle {manifest.name} does not say what its submodels compute; convert the "
                "checkpoint again with this version"
            )
        operations = calls.count * sum(work.flop_of(calls.sizes).values())
        flop[calls.submodel] = flop.get(calls.submodel, 0.0) + operations
    pixels = plan.size.height * plan.size.width * plan.shown_frames
    seconds = {name: value / machine.flop_per_second(name) for name, value in flop.items()}
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
    )
