"""Compares a bundle with PyTorch: every submodel on inputs from a real clip, and the whole video."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sonic.diffusion.noise import load_noise
from sonic.engines.watched import Call
from sonic.errors import InputError
from sonic.media.face import Face, detect_faces
from sonic.model import SonicModel, load_model
from sonic.options import GenerationOptions
from sonic.prepared_clip import ClipRequest
from sonic.progress import NoProgress, Progress
from sonic.storage.files import replace_file, write_json
from sonic.verification.compare import Difference, compare
from sonic_calibration.quality.picture import VideoDifference, compare_videos
from sonic_calibration.recording.recorder import Recorder
from sonic_convert.bundle_writer import write_manifest
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.checkpoint.layout import Variant
from sonic_convert.export.contents import check_contents
from sonic_convert.export.submodels import SUBMODELS, Submodel
from sonic_convert.parity.reference import ReferenceResult, TorchReference

MINIMUM_PSNR_DB = 50.0
# Largest relative L2 differences of intermediate results; errors accumulate over the denoising steps.
TOLERANCES = {"audio_tokens": 1e-4, "uncond_tokens": 1e-4, "buckets": 1e-4, "latents": 1e-3}
_CALLS_PER_SUBMODEL = 2


@dataclass(frozen=True)
class Row:
    """One compared array: its difference and the tolerance (relative L2)."""

    name: str
    difference: Difference
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference.relative_l2 <= self.tolerance


@dataclass(frozen=True)
class ParityReport:
    """Everything that was compared."""

    rows: tuple[Row, ...]
    video: VideoDifference
    frames: int
    height: int
    width: int
    steps: int

    @property
    def passed(self) -> bool:
        """Whether everything is within its tolerance."""
        return all(row.passed for row in self.rows) and self.video.psnr_db >= MINIMUM_PSNR_DB

    def to_json(self) -> dict[str, Any]:
        """Numbers for a file or a manifest."""
        return {
            "passed": self.passed,
            "rows": [
                {"name": row.name, **asdict(row.difference), "tolerance": row.tolerance} for row in self.rows
            ],
            "video": asdict(self.video)
            | {
                "minimum_psnr_db": MINIMUM_PSNR_DB,
                "frames": self.frames,
                "height": self.height,
                "width": self.width,
                "steps": self.steps,
            },
        }


def measure_parity(
    checkpoint_path: Path,
    bundle_path: Path,
    image: Path,
    audio: Path,
    options: GenerationOptions,
    noise: Path | None = None,
    progress: Progress | None = None,
    picture: Path | None = None,
    variant: Variant = "auto",
) -> ParityReport:
    """Generate one clip with the bundle and with PyTorch from the same noise, and compare.

    Both use the face that the bundle's detector finds (the detectors are compared separately): a mask's
    edges are whole pixels, so that the last bits of a box can decide where one lies.

    Args:
        checkpoint_path: what the bundle was made from.
        bundle_path: the bundle.
        image, audio, options, noise: the clip; lip-sync correction and smoothing are left off, and it is
            denoised with the published sampler, whatever the bundle's default preset.
        progress: shows the stages.
        picture: where to write the worst frame: bundle, PyTorch and their difference side by side.
        variant: which weights files of the checkpoint to read.
    """
    progress = progress or NoProgress()
    options = replace(options, lip_sync_correction=False, smooth_motion=False, speed=None, sigmas=None)
    checkpoint = Checkpoint.open(checkpoint_path, variant)
    check_contents(checkpoint, progress)
    model = load_model(bundle_path)
    recorder = Recorder(_CALLS_PER_SUBMODEL)
    with tempfile.TemporaryDirectory(prefix="sonic-parity-") as folder:
        dump = Path(folder)
        _run_bundle(model, image, audio, options, noise, dump, recorder, progress)
        initial = None if noise is None else load_noise(noise)
        reference = TorchReference(checkpoint)
        with model.engine.open("face_detector") as detector:

            def detect(picture: Image.Image) -> list[Face]:
                return detect_faces(np.asarray(picture), detector.run, checkpoint.constants.face)

            result = reference.generate(image, audio, options, initial, progress, detect)
            portrait = reference.portrait(image, options.resolved(checkpoint.constants), detect)
        rows = [
            *_compare_submodels(reference, recorder, torch.from_numpy(portrait.face_mask), progress),
            *_compare_results(dump, result),
        ]
        frames = np.load(dump / "frames.npy", mmap_mode="r")
        video = compare_videos(frames, result.frames)
        if picture is not None:
            write_picture(picture, frames[video.worst_frame], result.frames[video.worst_frame])
        steps = options.resolved(checkpoint.constants).inference_steps
        assert steps is not None
        count, height, width, _ = frames.shape
        return ParityReport(tuple(rows), video, count, height, width, steps)


def record(bundle_path: Path, report: ParityReport) -> None:
    """Write the report into the bundle's manifest."""
    manifest = load_model(bundle_path, check_digests=False).manifest
    whole = report.to_json()
    parity = manifest.parity | {"video": whole["video"], "clip": whole["rows"], "passed": report.passed}
    write_manifest(bundle_path, replace(manifest, parity=parity))


def print_report(report: ParityReport, console: Console) -> None:
    """Print the comparison as a table."""
    # Narrow, so that the verdicts are visible on a terminal with 80 columns.
    table = Table(title="parity with PyTorch (float32)", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("compared", "max abs", "relative L2", "cosine", "tolerance", ""):
        first = column == "compared"
        table.add_column(column, justify="left" if first else "right", no_wrap=True)
    for row in report.rows:
        d = row.difference
        table.add_row(
            row.name,
            f"{d.max_abs:.2e}",
            f"{d.relative_l2:.2e}",
            f"{d.cosine:.6f}",
            f"{row.tolerance:g}",
            "ok" if row.passed else "FAILED",
        )
    video = report.video
    table.add_section()
    table.add_row(
        "video",
        f"PSNR {video.psnr_db:.1f}",
        f"SSIM {video.ssim:.4f}",
        f"worst {video.worst_psnr_db:.1f}",
        f">= {MINIMUM_PSNR_DB:g} dB",
        "ok" if video.psnr_db >= MINIMUM_PSNR_DB else "FAILED",
    )
    table.caption = (
        f"{report.frames} frames of {report.width} x {report.height}, {report.steps} steps; "
        f"PSNR in dB, the worst frame is {video.worst_frame}"
    )
    console.print(table)


def write_report(report: ParityReport, path: Path) -> None:
    """Write the report as JSON, whole or not at all."""
    write_json(path, report.to_json())


def write_picture(path: Path, frame: np.ndarray, expected: np.ndarray) -> None:
    """Write bundle, PyTorch and 16 times their difference, side by side."""
    difference = np.abs(frame.astype(np.int16) - expected) * 16
    panels = [frame, expected, np.clip(difference, 0, 255).astype(np.uint8)]
    picture = Image.fromarray(np.concatenate(panels, axis=1))
    replace_file(path, lambda partial: picture.save(partial, format="PNG"))


def _run_bundle(
    model: SonicModel,
    image: Path,
    audio: Path,
    options: GenerationOptions,
    noise: Path | None,
    dump: Path,
    recorder: Recorder,
    progress: Progress,
) -> None:
    request = ClipRequest(image, audio, options.resolved(model.constants), noise, dump)
    model.generate_request(request, progress, recorder)


def _compare_submodels(
    reference: TorchReference,
    recorder: Recorder,
    face_mask: Tensor,
    progress: Progress,
) -> list[Row]:
    """Compare every submodel's recorded calls with its published forward."""
    rows = []
    with progress.stage("torch: submodels", len(SUBMODELS)) as advance, torch.inference_mode():
        for submodel in SUBMODELS:
            calls = recorder.calls.get(submodel.name)
            if not calls:  # a clip of one frame has nothing to interpolate
                advance()
                continue
            with reference.network(submodel.name) as module:
                worst = max(
                    (_compare_call(submodel, module, call, face_mask) for call in calls),
                    key=lambda difference: difference.relative_l2,
                )
            rows.append(Row(submodel.name, worst, submodel.tolerance))
            advance()
    return rows


def _compare_call(submodel: Submodel, module: nn.Module, call: Call, face_mask: Tensor) -> Difference:
    (output,) = call.outputs.values()
    return compare(output, published_output(submodel, module, call.inputs, face_mask))


def published_output(
    submodel: Submodel, module: nn.Module, inputs: Mapping[str, np.ndarray], face_mask: Tensor
) -> np.ndarray:
    """The output of a submodel's published forward for the inputs of the exported one.

    Args:
        submodel: of the table.
        module: of :meth:`sonic_convert.parity.reference.TorchReference.network`.
        inputs: by name, in the order of the table.
        face_mask: (1, 1, H, W) float32.
    """
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return module(*submodel.published_arguments(tensors, face_mask)).numpy()


def _compare_results(dump: Path, result: ReferenceResult) -> list[Row]:
    expected = {
        "audio_tokens": result.audio_tokens,
        "uncond_tokens": result.unconditional_tokens,
        "buckets": result.buckets,
        "latents": result.latents,
    }
    rows = []
    for name, array in expected.items():
        found = np.load(dump / f"{name}.npy")
        if found.shape != array.shape:
            raise InputError(
                f"the bundle's {name} are {found.shape}, but this checkpoint gives {array.shape}; "
                "give the checkpoint that the bundle was made from"
            )
        rows.append(Row(name, compare(found, array), TOLERANCES[name]))
    return rows
