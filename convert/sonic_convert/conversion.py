"""Converts a checkpoint to a bundle: the stages of every submodel, golden vectors, then the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxsim
import torch
from transformers.audio_utils import mel_filter_bank

import sonic_convert
from sonic.bundle.bundle import Bundle
from sonic.bundle.constants import AudioConstants
from sonic.bundle.manifest import FileInfo, Manifest, SubmodelInfo, TensorInfo
from sonic.bundle.store import file_info, sha256_of
from sonic.bundle.work import Work
from sonic.errors import OutputError
from sonic.progress import NoProgress, Progress
from sonic.storage.files import replace_file
from sonic_convert.bundle_writer import copy_files, copy_graph, making, new_bundle, write_manifest
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.checkpoint.layout import Variant
from sonic_convert.checkpoint.notice import NOTICE, license_files, notice_of
from sonic_convert.export import stages
from sonic_convert.export.contents import check_contents
from sonic_convert.export.dimensions import dimension_files, read_dimensions
from sonic_convert.export.stages import StageResult
from sonic_convert.export.submodels import SUBMODELS, Submodel
from sonic_convert.parity.golden import FOLDER, make_golden

_CHECKED = "checked.json"
_MEL_FILTERS = "mel_filters.npy"


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: the manifest, and the result of each stage of each submodel."""

    manifest: Manifest
    results: dict[str, dict[str, StageResult]]


def convert(
    checkpoint_path: Path,
    bundle_path: Path,
    variant: Variant = "auto",
    work_path: Path | None = None,
    progress: Progress | None = None,
    name: str | None = None,
) -> Conversion:
    """Convert a checkpoint to a full-precision bundle that the runtime can load.

    Args:
        checkpoint_path: the folder that holds ``Sonic/``, ``RIFE/``, ``whisper-tiny/`` and so on.
        bundle_path: the bundle to write; replaced when the conversion succeeds.
        variant: which weights of the VAE and the image encoder to read: "fp16", "fp32" or "auto".
        work_path: intermediate results, kept so that a conversion can resume; ``BUNDLE.work`` by
            default.
        progress: shows the stages.
        name: in the manifest; by default that of the bundle's folder.

    Raises:
        InputError: the checkpoint cannot be used.
        OutputError: the bundle cannot be written.
    """
    progress = progress or NoProgress()
    checkpoint = Checkpoint.open(checkpoint_path, variant)
    with making(bundle_path, work_path) as work:
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {work} ({error.strerror})") from error
        try:
            check_contents(checkpoint, progress, work / _CHECKED)
        except BaseException:
            with suppress(OSError):  # it holds something
                work.rmdir()
            raise
        return _convert(checkpoint, bundle_path, work, progress, name or bundle_path.name)


def _convert(
    checkpoint: Checkpoint, bundle_path: Path, work: Path, progress: Progress, name: str
) -> Conversion:
    weights = {path for submodel in SUBMODELS for path in checkpoint.files(submodel.component)}
    files = sorted(weights | dimension_files(checkpoint))
    with progress.stage("reading checkpoint", len(files)) as advance:
        sources = {path: _source_info(path, checkpoint.path, work, advance) for path in files}
    results: dict[str, dict[str, StageResult]] = {}
    with progress.stage("export, simplify, fuse, check, measure memory", len(SUBMODELS) * 5) as advance:
        for submodel in SUBMODELS:
            results[submodel.name] = _convert_submodel(submodel, checkpoint, work, sources, advance)
    finished = _work_bundle(checkpoint, work, sources, results, name)
    made_from = [result["fuse"].digest for result in results.values()]
    golden = make_golden(checkpoint, finished, work / FOLDER, made_from, progress)
    with progress.stage("bundle", 1) as advance:
        manifest = _write_bundle(finished, replace(finished.manifest, verification=golden), bundle_path)
        advance()
    return Conversion(manifest, results)


def _convert_submodel(
    submodel: Submodel,
    checkpoint: Checkpoint,
    work: Path,
    sources: dict[Path, FileInfo],
    advance: Callable[[], None],
) -> dict[str, StageResult]:
    folder = work / submodel.name
    # The shapes of the example inputs follow from the dimensions.
    read = {*checkpoint.files(submodel.component), *dimension_files(checkpoint)}
    digest = hashlib.sha256("\n".join(sources[path].sha256 for path in sorted(read)).encode())
    exported = stages.export(submodel, checkpoint, folder / "exported", digest.hexdigest())
    advance()
    simplified = stages.simplify(
        submodel.outputs(read_dimensions(checkpoint)),
        folder / "exported",
        folder / "simplified",
        exported.digest,
    )
    advance()
    fused = stages.fuse(folder / "simplified", folder / "fused", simplified.digest)
    advance()
    checked = stages.check(submodel, folder / "exported", folder / "fused", folder / "checked", fused.digest)
    advance()
    inputs = submodel.inputs(read_dimensions(checkpoint))
    measured = stages.measure_memory(submodel, inputs, folder / "fused", folder / "measured", fused.digest)
    advance()
    return {
        "export": exported, "simplify": simplified, "fuse": fused, "check": checked,
        "measure": measured,
    }  # fmt: skip


def mel_filters(constants: AudioConstants) -> np.ndarray:
    """Whisper's mel filters, float32 (frequencies, mel bins): Slaney's scale and area normalisation."""
    filters = mel_filter_bank(
        num_frequency_bins=1 + constants.fft_samples // 2,
        num_mel_filters=constants.mel_bins,
        min_frequency=0.0,
        max_frequency=constants.sample_rate_hz / 2,
        sampling_rate=constants.sample_rate_hz,
        norm="slaney",
        mel_scale="slaney",
    )
    return np.asarray(filters, np.float32)


def _work_bundle(
    checkpoint: Checkpoint,
    work: Path,
    sources: dict[Path, FileInfo],
    results: dict[str, dict[str, StageResult]],
    name: str,
) -> Bundle:
    """A bundle that runs the finished graphs where the stages left them; it has no digests of them."""
    np.save(work / _MEL_FILTERS, mel_filters(checkpoint.constants.audio))
    manifest = Manifest(
        name=name,
        engine="onnxruntime",
        license=checkpoint.license,
        producer={
            "sonic-convert": sonic_convert.__version__,
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "onnxsim": onnxsim.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        sources=tuple(sources.values()),
        submodels={
            submodel.name: _submodel_info(submodel, work, results[submodel.name]) for submodel in SUBMODELS
        },
        assets={"mel_filters": file_info(work / _MEL_FILTERS, work), **_licenses(checkpoint, work)},
        constants=checkpoint.constants,
        parity={"submodels": {name: r["check"].facts for name, r in results.items()}},
        speeds=checkpoint.speeds,
    )
    return Bundle(work, manifest, check_digests=False)


def _licenses(checkpoint: Checkpoint, work: Path) -> dict[str, FileInfo]:
    """Put the notice, and the licences that the checkpoint holds, into the work folder."""
    (work / NOTICE).write_text(notice_of(checkpoint), encoding="utf-8")
    assets = {"notice": file_info(work / NOTICE, work)}
    for path, source in license_files(checkpoint.path).items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, work / path)
        assets[path] = file_info(work / path, work)
    return assets


def _submodel_info(submodel: Submodel, work: Path, results: dict[str, StageResult]) -> SubmodelInfo:
    path = work / submodel.name / "fused" / stages.GRAPH
    graph = onnx.load(str(path), load_external_data=False)
    return SubmodelInfo(
        name=submodel.name,
        precision="fp32",
        opset=next(item.version for item in graph.opset_import if item.domain in ("", "ai.onnx")),
        files=tuple(
            FileInfo(file.relative_to(work).as_posix(), file.stat().st_size, "")
            for file in (path, path.with_name(f"{path.name}.data"))
            if file.exists()
        ),
        inputs=tuple(map(_tensor_info, graph.graph.input)),
        outputs=tuple(map(_tensor_info, graph.graph.output)),
        work=Work(
            results["export"].facts["flop"],
            results["measure"].facts["activation_bytes"],
            results["measure"].facts["weight_bytes"],
        ),
    )


def _write_bundle(finished: Bundle, manifest: Manifest, bundle_path: Path) -> Manifest:
    """Copy every file to its place in the bundle, with a folder for each submodel, and write the manifest."""
    work = finished.directory
    with new_bundle(bundle_path) as partial:
        submodels = {
            name: replace(info, files=copy_graph(finished.graph_path(name), partial / name, partial))
            for name, info in manifest.submodels.items()
        }
        copy_files(manifest.assets.values(), work, partial)
        if manifest.verification is not None:
            copy_files(manifest.verification.files, work / FOLDER, partial)
        manifest = replace(manifest, submodels=submodels)
        write_manifest(partial, manifest)
    return manifest


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    shape = tuple(size.dim_param or size.dim_value for size in kind.shape.dim)
    return TensorInfo(value.name, dtype, shape)


def _source_info(path: Path, root: Path, work: Path, advance: Callable[[], None]) -> FileInfo:
    """A checkpoint file's digest, cached by size and modification time, as some files have gigabytes."""
    cache = work / "sources.json"
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = sha256_of(path)
        replace_file(cache, lambda partial: partial.write_text(json.dumps(known)))
    advance()
    return FileInfo(path.relative_to(root).as_posix(), status.st_size, known[key])
