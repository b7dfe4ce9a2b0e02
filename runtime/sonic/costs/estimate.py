"""What a clip costs before it is made: operations, seconds, memory, disk and energy.

    estimate = estimate_clip(model.manifest, ClipSize(60.0, 512, 512, 25), MACHINES["kunpeng920"])

Operations follow from the bundle's own counts (`sonic.bundle.work`), seconds from what a machine reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

from sonic.bundle.manifest import Manifest
from sonic.costs.machines import Machine
from sonic.errors import BundleError
from sonic.memory import base_bytes, peak_memory, spooled_bytes
from sonic.options import BALANCED, RunOptions
from sonic.plan import ClipSize, submodel_calls
from sonic.storage.spool import DEFAULT_MEMORY_LIMIT_BYTES


@dataclass(frozen=True)
class Estimate:
    """What a clip costs on a machine.

    Attributes:
        flop: operations by submodel.
        seconds: by submodel, and "encoding".
        peak_bytes: resident memory.
        peak_stage: the submodel during which it is reached.
        disk_bytes: temporary files while `sonic generate` makes the clip. Where frames are kept before they
            are encoded (batches, lip-sync correction, `SonicModel.generate`), it is 3 bytes a pixel more.
        joules: of the processor.
    """

    flop: dict[str, float]
    seconds: dict[str, float]
    peak_bytes: float
    peak_stage: str
    disk_bytes: float
    joules: float

    @property
    def total_seconds(self) -> float:
        """From the start to the finished file."""
        return sum(self.seconds.values())


def estimate_clip(
    manifest: Manifest, clip: ClipSize, machine: Machine, run: RunOptions = BALANCED
) -> Estimate:
    """What a clip costs.

    Raises:
        BundleError: the bundle was made by a version that did not count its work.
    """
    constants = manifest.constants
    flop: dict[str, float] = {}
    for name, sizes, count in submodel_calls(constants, clip, run):
        work = manifest.submodels[name].work
        if work is None:
            raise BundleError(
                f"the bundle {manifest.name} does not say what its submodels compute; convert the "
                "checkpoint again with this version"
            )
        flop[name] = flop.get(name, 0.0) + count * sum(work.flop_of(sizes).values())
    pixels = clip.height * clip.width * clip.shown_frames(constants)
    seconds = {name: value / machine.flop_per_second(name) for name, value in flop.items()}
    seconds["encoding"] = pixels / 1e6 * machine.encode_seconds_per_megapixel
    total = sum(seconds.values())
    stage, needed = peak_memory(manifest, clip, run)
    return Estimate(
        flop=flop,
        seconds=seconds,
        peak_bytes=base_bytes() + needed,
        peak_stage=stage,
        disk_bytes=float(
            sum(size for size in spooled_bytes(manifest, clip) if size > DEFAULT_MEMORY_LIMIT_BYTES)
        ),
        joules=total * machine.watts,
    )
