"""Makes a bundle of another precision from a full-precision one.

Example:

    options = QuantizationOptions(preset("int8"))
    calibration, _ = calibrate_bundle(fp32, examples, RecordingOptions(), file, options.plan.quantized, work)
    quantize_bundle(fp32, Path("bundles/int8"), options, calibration)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest import Manifest, SubmodelInfo
from sonic.bundle.store import open_bundle
from sonic.bundle.work import Work
from sonic.errors import InputError, warn
from sonic.progress import NoProgress, Progress
from sonic_calibration.graphs.layers import find_layers
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_calibration.ranges.calibration import Calibration, calibrate, graph_digest, observed_tensors
from sonic_calibration.ranges.statistics import TensorStatistics
from sonic_calibration.recording.examples import Example
from sonic_calibration.recording.recordings import RecordingOptions, Recordings, record
from sonic_convert.bundle_writer import (
    check_target,
    copy_files,
    copy_graph,
    making,
    new_bundle,
    write_manifest,
)
from sonic_convert.export import stages
from sonic_convert.export.submodels import SUBMODELS, Submodel
from sonic_convert.parity.golden import FOLDER, measure_reduced
from sonic_convert.quantization.plan import PrecisionPlan
from sonic_convert.quantization.profiles import PROFILES, check_profile
from sonic_convert.quantization.qdq import QdqOptions, quantize_graph


@dataclass(frozen=True)
class QuantizationOptions:
    """What a quantized bundle should be.

    Attributes:
        plan: the precision of every layer.
        qdq: how ranges become integers; a profile refines it.
        profile: the engine that the graphs are for, one of `PROFILES`.
        notes: further entries for the manifest (results of a search).

    Raises:
        InputError: the profile is unknown.
    """

    plan: PrecisionPlan
    qdq: QdqOptions = QdqOptions()
    profile: str = "onnxruntime"
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise InputError(f"profile is {self.profile!r}, but should be one of {', '.join(PROFILES)}")

    @property
    def refined(self) -> QdqOptions:
        """The options with those that the profile requires."""
        return replace(self.qdq, **PROFILES[self.profile].options)


def calibrate_bundle(
    bundle: Path,
    examples: Sequence[Example],
    options: RecordingOptions,
    target: Path,
    submodels: Sequence[str],
    work: Path,
    progress: Progress | None = None,
) -> tuple[Calibration, Recordings]:
    """Record the examples with a full-precision bundle and collect every layer's statistics.

    Args:
        bundle: full precision.
        examples: portraits and speech.
        options: how much is recorded.
        target: the file to write; an existing one is reused if it was collected from the same recordings.
        submodels: those whose layers are calibrated.
        work: folder of recordings and intermediate values; an interrupted calibration resumes there.
        progress: shows both stages.

    Raises:
        InputError: the bundle is quantized already, or an example cannot be used or is too short.
        OutputError: a file cannot be written.
    """
    if not submodels:
        raise InputError(
            "this precision quantizes no activations, so there is nothing to calibrate; choose int8 or "
            "fp16-native"
        )
    opened = open_bundle(bundle, check_digests=False)
    _check_full_precision(opened)
    recordings = record(bundle, examples, work / "recordings", options, submodels, progress)
    graphs = {submodel: graph_digest(opened.manifest, submodel) for submodel in submodels}
    if target.exists():
        known = Calibration.load(target)
        if known.recordings == recordings.digest and known.graphs == graphs:
            return known, recordings
    observed = {
        submodel: observed_tensors(find_layers(StoredGraph.open(opened.graph_path(submodel))))
        for submodel in submodels
    }
    calibration = calibrate(opened, recordings, observed, work / "values", progress)
    calibration.save(target)
    return calibration, recordings


def quantize_bundle(
    source: Path,
    target: Path,
    options: QuantizationOptions,
    calibration: Calibration | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
    verifiable: bool = True,
) -> Manifest:
    """Write a bundle with the precisions of a plan.

    Args:
        source: the full-precision bundle.
        target: the bundle to write; replaced when all is done.
        options: what the bundle should be.
        calibration: of the source; needed where the plan quantizes activations.
        work: folder of finished graphs, so that an interrupted call resumes; TARGET.work by default.
        progress: shows the submodels.
        verifiable: copy the source's golden vectors, and measure this precision's difference from them;
            a temporary bundle needs none.

    Returns:
        The new manifest.

    Raises:
        InputError: the source is quantized already, the calibration is missing or of another bundle, or a
            submodel's outputs are not finite in this precision.
        OutputError: the bundle cannot be written.
    """
    progress = progress or NoProgress()
    opened = open_bundle(source)
    _check_full_precision(opened)
    check_target(target)
    if target.resolve() == source.resolve():
        raise InputError(f"{target} is the bundle to quantize; choose another name, so that nothing is lost")
    known = {} if calibration is None else calibration.tensors
    missing = [name for name in options.plan.quantized if name not in known]
    if missing:
        raise InputError(
            f"the precision {options.plan.name!r} rounds activations of '{missing[0]}', of which the "
            "calibration says nothing; make one with 'sonic-convert calibrate'"
        )
    if calibration is not None:
        calibration.check_fits(opened.manifest, "the calibration")
    calibration_digest = None if calibration is None else calibration.digest
    infos: dict[str, SubmodelInfo] = {}
    facts: dict[str, Any] = {}
    with making(target, work) as work, new_bundle(target) as partial:
        with progress.stage("quantizing", len(SUBMODELS)) as advance:
            for submodel in SUBMODELS:
                graph, infos[submodel.name], facts[submodel.name] = _quantize_submodel(
                    opened,
                    submodel,
                    options,
                    known.get(submodel.name, {}),
                    calibration_digest,
                    work / submodel.name,
                )
                files = copy_graph(graph, partial / submodel.name, partial)
                infos[submodel.name] = replace(infos[submodel.name], files=files)
                advance()
        copy_files(opened.manifest.assets.values(), source, partial)
        quantization = {
            "plan": options.plan.name,
            "rules": {name: [list(rule) for rule in rules] for name, rules in options.plan.rules.items()},
            "profile": options.profile,
            "options": asdict(options.refined),
            "calibration": calibration_digest,
            "layers": facts,
            **options.notes,
        }
        golden = opened.manifest.verification if verifiable else None
        if verifiable and golden is None:
            warn(f"{source} holds no golden vectors, so that 'sonic verify' has none for {target} either")
        manifest = replace(
            opened.manifest, name=target.name, submodels=infos, quantization=quantization, parity={},
            verification=golden,
        )  # fmt: skip
        if golden is not None:
            copy_files(golden.files, source, partial)
            golden = measure_reduced(Bundle(partial, manifest), opened.manifest, work / FOLDER, progress)
            manifest = replace(manifest, verification=golden)
        write_manifest(partial, manifest)
    return manifest


def _quantize_submodel(
    bundle: Bundle,
    submodel: Submodel,
    options: QuantizationOptions,
    statistics: Mapping[str, TensorStatistics],
    calibration_digest: str | None,
    work: Path,
) -> tuple[Path, SubmodelInfo, dict[str, Any]]:
    """A submodel's graph in its new precision, its entry for the manifest, and facts about its layers.

    `statistics` are those of its tensors.
    """
    name, source = submodel.name, bundle.graph_path(submodel.name)
    info = bundle.manifest.submodels[name]
    layers = [layer.name for layer in find_layers(StoredGraph.open(source))]
    precisions = {layer: options.plan.of(name, layer) for layer in layers}
    if set(precisions.values()) <= {"fp32"}:
        return source, info, {}
    key = [
        graph_digest(bundle.manifest, name), json.dumps(precisions), json.dumps(asdict(options.refined)),
        options.profile, (calibration_digest or "") if options.plan.quantizes(name) else "",
        onnx.__version__, onnxruntime.__version__,
    ]  # fmt: skip

    def produce(folder: Path) -> dict[str, Any]:
        graph = folder / stages.GRAPH
        sizes = submodel.memory_sizes[-1]
        facts = quantize_graph(source, graph, precisions, statistics, options.refined, sizes)
        check_profile(graph, options.profile)
        return facts

    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()
    made = stages.run_stage(work / "quantized", [digest], produce)
    memory = stages.measure_memory(submodel, info.inputs, work / "quantized", work / "measured", made.digest)
    if info.work is not None:
        measured = memory.facts["activation_bytes"], memory.facts["weight_bytes"]
        info = replace(info, work=Work(info.work.flop, *measured))
    info = replace(info, precision=options.plan.main_precision(name))
    return work / "quantized" / stages.GRAPH, info, made.facts


def _check_full_precision(bundle: Bundle) -> None:
    quantization = bundle.manifest.quantization
    if any(quantization.get("layers", {}).values()):
        raise InputError(
            f"{bundle.directory} is of the precision {quantization['plan']} already; give the full-precision "
            "bundle that it was made from"
        )
