"""Measures how much quantizing each layer or block changes a submodel's outputs.

    found = measure_sensitivity(bundle, "unet", recordings, calibration, plan, unit="layer")
    plan = plan.with_exceptions("unet", found[0].layers, "fp32")

One unit at a time is quantized, all others stay in float32, and recorded calls are run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sonic.bundle.bundle import Bundle
from sonic.bundle.constants import SamplerConstants
from sonic.diffusion.guidance import branch_weights
from sonic.errors import InputError
from sonic.progress import NoProgress, Progress
from sonic.storage.files import replace_file
from sonic_calibration.graphs.layers import Layer, find_layers
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.recording.recordings import Recordings, Sample
from sonic_convert.quantization.plan import PrecisionPlan
from sonic_convert.quantization.qdq import DEFAULTS, QdqOptions, open_quantized

UNITS = ("layer", "block")
_NUMBERED = ("resnets", "attentions", "layers", "upsamplers", "downsamplers")


@dataclass(frozen=True)
class Sensitivity:
    """The effect of quantizing one unit.

    Attributes:
        submodel, unit: names.
        layers: names of the unit's layers that are quantized.
        parameters: their number.
        error: root mean square of the change of the submodel's outputs, relative to that of the outputs;
            where the calls are denoising steps, of the denoised latent that they lead to.
    """

    submodel: str
    unit: str
    layers: tuple[str, ...]
    parameters: int
    error: float


def block_of(layer: str) -> str:
    """``unet.down_blocks.0.resnets.1`` from the name of one of its layers; others are their own block."""
    parts = layer.split(".")
    for index, part in enumerate(parts[:-1]):
        if part in _NUMBERED:
            return ".".join(parts[: index + 2])
    return layer


def measure_sensitivity(
    bundle: Bundle,
    submodel: str,
    recordings: Recordings,
    calibration: Calibration,
    plan: PrecisionPlan,
    options: QdqOptions = DEFAULTS,
    unit: str = "block",
    calls: int = 4,
    work: Path | None = None,
    progress: Progress | None = None,
) -> list[Sensitivity]:
    """Quantize one unit after another.

    Args:
        bundle: full precision.
        submodel: of the bundle.
        recordings: of its calls; evenly spaced ones are run again.
        calibration: of the bundle.
        plan: layers that it leaves in float32 are not tried.
        options: how ranges become integers.
        unit: "layer" or "block".
        calls: how many recorded calls each unit is tried on.
        work: a folder for finished units, so that an interrupted measurement resumes.
        progress: shows the units.

    Returns:
        The most sensitive first.

    Raises:
        InputError: the unit is unknown, or there is no recorded call.
    """
    if unit not in UNITS:
        raise InputError(f"the unit is {unit!r}, but should be one of {', '.join(UNITS)}")
    samples = recordings.samples(submodel)
    if not samples:
        raise InputError(f"the recordings hold no call of '{submodel}'; record longer examples")
    samples = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, calls).round().astype(int))]
    graph = StoredGraph.open(bundle.graph_path(submodel))
    units: dict[str, list[Layer]] = {}
    for layer in find_layers(graph):
        if plan.of(submodel, layer.name) != "fp32":
            units.setdefault(block_of(layer.name) if unit == "block" else layer.name, []).append(layer)
    statistics = calibration.tensors.get(submodel, {})
    key = [calibration.digest, recordings.digest, asdict(options), unit, calls, plan.rules.get(submodel)]
    done = _Finished(work, submodel, hashlib.sha256(json.dumps(key).encode()).hexdigest())
    found = []
    with (progress or NoProgress()).stage(f"sensitivity of {submodel}", len(units)) as advance:
        for name, layers in units.items():
            error = done.errors.get(name)
            if error is None:
                precisions = {layer.name: plan.of(submodel, layer.name) for layer in layers}
                session = open_quantized(graph, precisions, statistics, options)
                error = _error(session, samples, bundle.manifest.constants.sampler)
                done.add(name, error)
            names = tuple(layer.name for layer in layers)
            found.append(Sensitivity(submodel, name, names, sum(layer.parameters for layer in layers), error))
            advance()
    return sorted(found, key=lambda one: -one.error)


def _error(session: Any, samples: Sequence[Sample], constants: SamplerConstants) -> float:
    changed = whole = 0.0
    for sample in samples:
        inputs, expected = sample.arrays("in"), sample.arrays("out")
        names = [output.name for output in session.get_outputs()]
        weight = denoising_weight(sample.tags, constants)
        for name, values in zip(names, session.run(names, inputs), strict=True):
            changed += weight**2 * float(np.square(values - expected[name], dtype=np.float64).mean())
            whole += weight**2 * float(np.square(expected[name], dtype=np.float64).mean())
    return float(np.sqrt(changed / max(whole, 1e-30)))


def denoising_weight(tags: Mapping[str, Any], constants: SamplerConstants) -> float:
    """The weight of a call's result in the denoised latent; 1 for calls that are not denoising steps.

    With v-prediction the denoised latent is ``x / (s^2 + 1) - v s / sqrt(s^2 + 1)`` (Karras et al. 2022, in
    the form of SVD's scheduler), and v is the guided sum of the branches.
    """
    if "sigma" not in tags:
        return 1.0
    sigma = float(tags["sigma"])
    guidance = branch_weights(constants.image_guidance[-1], constants.audio_guidance[-1])
    branches = tags.get("branches", range(len(guidance)))
    largest = max(abs(guidance[branch]) for branch in branches)
    return largest * sigma / float(np.sqrt(sigma**2 + 1))


class _Finished:
    """Errors of finished units, stored in a file."""

    def __init__(self, work: Path | None, submodel: str, digest: str) -> None:
        self._path = None if work is None else work / f"{submodel}.{digest[:16]}.json"
        self.errors: dict[str, float] = {}
        if self._path is not None and self._path.exists():
            self.errors = json.loads(self._path.read_text())

    def add(self, name: str, error: float) -> None:
        self.errors[name] = error
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.errors, indent=1)
            replace_file(self._path, lambda partial: partial.write_text(text))
