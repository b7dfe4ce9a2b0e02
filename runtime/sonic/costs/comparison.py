"""A clip's cost by bundle, preset and machine, to be laid out beside each other.

for projection in compare([fp32, int8], GenerationOptions(duration=10.0), list(MACHINES.values())):
    print(projection.bundle, projection.speed, projection.machine.name, projection.cost.total_seconds)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sonic.bundle.manifest import Manifest
from sonic.bundle.presets import SPEED_NAMES, SpeedName
from sonic.costs.estimate import Estimate, estimate_clip
from sonic.costs.machines import Machine
from sonic.options import AUTOMATIC, GenerationOptions, RunOptions
from sonic.plan import ClipPlan, plan_square_clip


@dataclass(frozen=True)
class Projection:
    """One clip on one machine.

    Attributes:
        bundle: the name that tells the bundle from the others.
        manifest: the bundle's.
        speed: the preset, or None where the denoising steps were given.
        chosen: whether the clip has this preset if none is asked for, or the steps that were given.
        plan: the clip's.
        machine, cost: what it takes there.
    """

    bundle: str
    manifest: Manifest
    speed: SpeedName | None
    chosen: bool
    plan: ClipPlan
    machine: Machine
    cost: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        size = self.plan.size
        return {
            "bundle": self.manifest.name,
            "precision": precision_of(self.manifest),
            "speed": self.speed,
            "steps": len(self.plan.denoising.steps),
            "evaluations_per_window": self.plan.denoising.evaluations_per_window,
            "speech_seconds": size.seconds,
            "width": size.width,
            "height": size.height,
            "machine": self.machine.name,
            "total_seconds": self.cost.total_seconds,
            **asdict(self.cost),
        }


def compare(
    manifests: Mapping[str, Manifest],
    options: GenerationOptions,
    machines: Sequence[Machine],
    run: RunOptions = AUTOMATIC,
) -> list[Projection]:
    """Estimate a square clip with every bundle on every machine.

    Args:
        manifests: the bundles', by names that tell them apart.
        options: the clip's. With a speed, steps or noise levels, the clip is estimated with these, else with
            every preset.
        machines: those that it may run on.
        run: how its submodels run.

    Raises:
        InputError: the resolution rounds to zero.
        BundleError: a bundle was made by a version that did not count its work.
    """
    found = []
    for name, manifest in manifests.items():
        for speed in _speeds(options):
            asked = options if speed is None else replace(options, speed=speed)
            plan = plan_square_clip(manifest, asked)
            chosen = speed in (None, options.speed or manifest.speeds.default)
            found += [
                Projection(
                    name, manifest, speed, chosen, plan, machine, estimate_clip(manifest, plan, machine, run)
                )
                for machine in machines
            ]
    return found


def _speeds(options: GenerationOptions) -> tuple[SpeedName | None, ...]:
    if options.inference_steps is not None or options.sigmas is not None:
        return (None,)
    return SPEED_NAMES if options.speed is None else (options.speed,)


def precision_of(manifest: Manifest) -> str:
    """The precision of most layers of the UNet, which takes most of the time."""
    return manifest.submodels["unet"].precision
