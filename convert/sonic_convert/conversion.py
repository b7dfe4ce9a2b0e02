"""From a checkpoint to a bundle: every stage of every submodel, then the manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxsim
import torch
from transformers.audio_utils import mel_filter_bank

import sonic_convert
from sonic.bundle import file_info, sha256_of
from sonic.constants import AudioConstants
from sonic.errors import InputError, OutputError
from sonic.manifest import MANIFEST_NAME, FileInfo, Manifest, SubmodelInfo, TensorInfo
from sonic.progress import NoProgress, Progress
from sonic.work import Work
from sonic_convert import stages
from sonic_convert.checkpoint import Checkpoint
from sonic_convert.stages import StageResult
from sonic_convert.submodels import SUBMODELS, Submodel, measure

PRECISIONS = ("fp32",)


@dataclass(frozen=True)
class ConversionOptions:
    """How a checkpoint is converted."""

    precision: str = "fp32"
    variant: str = "auto"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"precision is {self.precision!r}, but should be one of {', '.join(PRECISIONS)}"
            )


@dataclass(frozen=True)
class Conversion:
    """A finished conversion: the manifest, and what each stage of each submodel took."""

    manifest: Manifest
    results: dict[str, dict[str, StageResult]]


def convert(
    checkpoint_path: Path,
    bundle_path: Path,
    options: ConversionOptions = ConversionOptions(),
    work_path: Path | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint to a bundle that the runtime can load.

    Args:
        checkpoint_path: the folder that holds ``Sonic/``, ``RIFE/``, ``whisper-tiny/`` and so on.
        bundle_path: the bundle to write; replaced when the conversion succeeds.
        options: precision and names.
        work_path: intermediate results, kept so that a conversion can resume; ``BUNDLE.work`` by
            default.
        progress: shows the stages.

    Raises:
        InputError: the checkpoint cannot be used.
        OutputError: the bundle cannot be written.
    """
    progress = progress or NoProgress()
    checkpoint = Checkpoint.open(checkpoint_path, options.variant)  # type: ignore[arg-type]
    _check_target(bundle_path)
    work = work_path or bundle_path.with_name(f"{bundle_path.name}.work")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {work} ({error.strerror})") from error
    files = sorted({path for s in SUBMODELS for path in checkpoint.files(s.component)})
    files = sorted({*files, *checkpoint.files("constants")})
    with progress.stage("reading checkpoint", len(files)) as advance:
        sources = {path: _source_info(path, checkpoint.path, work, advance) for path in files}
    results: dict[str, dict[str, StageResult]] = {}
    with progress.stage("export, simplify, fuse, check, weigh", len(SUBMODELS) * 5) as advance:
        for submodel in SUBMODELS:
            results[submodel.name] = _convert_submodel(submodel, checkpoint, work, sources, advance)
    with progress.stage("bundle", 1) as advance:
        manifest = _write_bundle(checkpoint, bundle_path, work, sources, results, options)
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
    # The table's examples and constants depend on every configuration and on the audio head's shape.
    read = {*checkpoint.files(submodel.component), *checkpoint.files("audio2token")}
    read |= {path for path in sources if path.suffix == ".json"}
    digest = hashlib.sha256("\n".join(sources[path].sha256 for path in sorted(read)).encode())
    exported = stages.export(submodel, checkpoint, folder / "exported", digest.hexdigest())
    advance()
    simplified = stages.simplify(
        submodel.outputs(measure(checkpoint)),
        folder / "exported",
        folder / "simplified",
        exported.digest,
    )
    advance()
    fused = stages.fuse(folder / "simplified", folder / "fused", simplified.digest)
    advance()
    checked = stages.check(
        submodel, folder / "exported", folder / "fused", folder / "checked", fused.digest
    )
    advance()
    weighed = stages.weigh(submodel, checkpoint, folder / "fused", folder / "weighed", fused.digest)
    advance()
    return {
        "export": exported, "simplify": simplified, "fuse": fused, "check": checked, "weigh": weighed,
    }  # fmt: skip


def mel_filters(constants: AudioConstants) -> np.ndarray:
    """Whisper's mel filters (frequencies, mel bins) float32: Slaney's scale and area normalisation."""
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


def write_manifest(bundle_path: Path, manifest: Manifest) -> None:
    """Replace a bundle's manifest at once."""
    temporary = bundle_path / f".{MANIFEST_NAME}.partial"
    try:
        temporary.write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, bundle_path / MANIFEST_NAME)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {bundle_path / MANIFEST_NAME} ({error.strerror})") from error


def _write_bundle(
    checkpoint: Checkpoint,
    bundle_path: Path,
    work: Path,
    sources: dict[Path, FileInfo],
    results: dict[str, dict[str, StageResult]],
    options: ConversionOptions,
) -> Manifest:
    try:
        bundle_path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{bundle_path.name}.", dir=bundle_path.parent))
        partial.chmod(0o755)
    except OSError as error:
        raise OutputError(f"cannot write {bundle_path} ({error.strerror})") from error
    try:
        submodels = {
            submodel.name: _add_submodel(
                submodel, work / submodel.name / "fused", partial, results[submodel.name]
            )
            for submodel in SUBMODELS
        }
        np.save(partial / "mel_filters.npy", mel_filters(checkpoint.constants.audio))
        manifest = Manifest(
            name=options.name or bundle_path.name,
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
            submodels=submodels,
            assets={"mel_filters": file_info(partial / "mel_filters.npy", partial)},
            constants=checkpoint.constants,
            parity={"submodels": {name: r["check"].facts for name, r in results.items()}},
        )
        write_manifest(partial, manifest)
        if bundle_path.exists():
            shutil.rmtree(bundle_path)
        os.replace(partial, bundle_path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {bundle_path} ({error.strerror or error})") from error
        raise
    return manifest


def _add_submodel(
    submodel: Submodel, fused: Path, bundle: Path, results: dict[str, StageResult]
) -> SubmodelInfo:
    """Put a submodel's files into its own folder of the bundle and describe them."""
    folder = bundle / submodel.name
    folder.mkdir()
    names = [stages.GRAPH, f"{stages.GRAPH}.data"]
    files = []
    for name in names:
        if (fused / name).exists():
            # A copy, not a link: damage to a bundle must not reach what a new conversion resumes from.
            shutil.copyfile(fused / name, folder / name)
            files.append(file_info(folder / name, bundle))
    graph = onnx.load(str(folder / stages.GRAPH), load_external_data=False)
    return SubmodelInfo(
        name=submodel.name,
        precision="fp32",
        opset=next(item.version for item in graph.opset_import if item.domain in ("", "ai.onnx")),
        files=tuple(files),
        inputs=tuple(map(_tensor_info, graph.graph.input)),
        outputs=tuple(map(_tensor_info, graph.graph.output)),
        work=Work(
            results["export"].facts["flop"],
            results["weigh"].facts["activation_bytes"],
            results["weigh"].facts["weight_bytes"],
        ),
    )


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    shape = tuple(size.dim_param or size.dim_value for size in kind.shape.dim)
    return TensorInfo(value.name, dtype, shape)


def _source_info(path: Path, root: Path, work: Path, advance: Callable[[], None]) -> FileInfo:
    """Digest of a checkpoint's file; remembered by size and time of change, as some have gigabytes."""
    cache = work / "sources.json"
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = sha256_of(path)
        temporary = cache.with_suffix(".partial")
        temporary.write_text(json.dumps(known))
        os.replace(temporary, cache)
    advance()
    return FileInfo(path.relative_to(root).as_posix(), status.st_size, known[key])


def _check_target(bundle_path: Path) -> None:
    """Only a bundle, an empty folder or nothing may be replaced."""
    if not bundle_path.exists():
        return
    if not bundle_path.is_dir() or (
        any(bundle_path.iterdir()) and not (bundle_path / MANIFEST_NAME).is_file()
    ):
        raise OutputError(
            f"{bundle_path} exists and is no bundle; choose another name, so that nothing is lost"
        )
