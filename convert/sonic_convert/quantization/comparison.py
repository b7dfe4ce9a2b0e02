"""Holding a quantized bundle against the full-precision one, by the videos that both make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sonic.bundle.store import open_bundle
from sonic.media.video import Video
from sonic.model import load_model
from sonic.progress import NoProgress, Progress
from sonic.storage.files import write_json
from sonic_calibration.quality.picture import Box
from sonic_calibration.quality.report import judge
from sonic_calibration.quality.video_face import largest_face, portrait_of_size
from sonic_calibration.recording.examples import WHOLE_CLIPS, ClipSettings, Example, generate_example
from sonic_convert.bundle_writer import write_manifest


@dataclass(frozen=True)
class ClipComparison:
    """One clip of two bundles from the same noise.

    Attributes:
        example: the portrait's name.
        psnr_db, worst_psnr_db, ssim: of the video and of its worst frame, against the reference's.
        lip_sync, reference_lip_sync: correlations with the speech; None without speech.
    """

    example: str
    psnr_db: float
    worst_psnr_db: float
    ssim: float
    lip_sync: float | None
    reference_lip_sync: float | None


@dataclass(frozen=True)
class BundleComparison:
    """All clips."""

    reference: str
    clips: tuple[ClipComparison, ...]

    @property
    def psnr_db(self) -> float:
        """The mean over the clips."""
        return float(np.mean([clip.psnr_db for clip in self.clips]))

    @property
    def worst_psnr_db(self) -> float:
        """Of the worst clip."""
        return min(clip.psnr_db for clip in self.clips)

    @property
    def lip_sync_change(self) -> float | None:
        """The mean change of the correlation."""
        changes = self._lip_sync_changes()
        return float(np.mean(changes)) if changes else None

    @property
    def largest_lip_sync_change(self) -> float | None:
        """The largest, whatever its sign."""
        return max(map(abs, self._lip_sync_changes()), default=None)

    def _lip_sync_changes(self) -> list[float]:
        return [
            clip.lip_sync - clip.reference_lip_sync
            for clip in self.clips
            if clip.lip_sync is not None and clip.reference_lip_sync is not None
        ]

    def to_json(self) -> dict[str, Any]:
        """Numbers for a file or a manifest."""
        return {
            "reference": self.reference,
            "psnr_db": self.psnr_db,
            "worst_psnr_db": self.worst_psnr_db,
            "lip_sync_change": self.lip_sync_change,
            "largest_lip_sync_change": self.largest_lip_sync_change,
            "clips": [asdict(clip) for clip in self.clips],
        }


@dataclass(frozen=True)
class ReferenceClip:
    """A clip of the full-precision bundle, and where its face is."""

    example: Example
    video: Video
    face_box: Box


@dataclass(frozen=True)
class Reference:
    """What other bundles are held against; of `generate_reference`."""

    bundle: str
    settings: ClipSettings
    clips: tuple[ReferenceClip, ...]


def generate_reference(
    bundle: Path,
    examples: Sequence[Example],
    settings: ClipSettings = WHOLE_CLIPS,
    progress: Progress | None = None,
) -> Reference:
    """Generate every example with the full-precision bundle.

    Args:
        bundle: the full-precision bundle.
        examples: portraits and speech, at least one.
        settings: of the clips.
        progress: shows the clips.

    Raises:
        InputError: an example cannot be used, or its portrait shows no face.
        BundleError: the bundle cannot be run.
    """
    model = load_model(bundle)
    clips = []
    with (progress or NoProgress()).stage(f"reference clips of {bundle.name}", len(examples)) as advance:
        for example in examples:
            video = generate_example(model, example, settings)
            _, height, width, _ = video.shape
            picture = portrait_of_size(example.image, width, height)
            box = largest_face(picture, model, str(example.image))
            clips.append(ReferenceClip(example, video, box))
            advance()
    return Reference(model.manifest.name, settings, tuple(clips))


def compare_with(reference: Reference, bundle: Path, progress: Progress | None = None) -> BundleComparison:
    """Generate the reference's clips with another bundle, from the same noise.

    Raises:
        BundleError: the bundle cannot be run.
    """
    model = load_model(bundle)
    clips = []
    with (progress or NoProgress()).stage(f"comparing {bundle.name}", len(reference.clips)) as advance:
        for clip in reference.clips:
            video = generate_example(model, clip.example, reference.settings)
            clips.append(_compare(clip.example.image.name, video, clip.video, clip.face_box))
            advance()
    return BundleComparison(reference.bundle, tuple(clips))


def compare_bundles(
    reference: Path,
    bundle: Path,
    examples: Sequence[Example],
    settings: ClipSettings = WHOLE_CLIPS,
    progress: Progress | None = None,
) -> BundleComparison:
    """Generate every example with both bundles; see `generate_reference` and `compare_with`."""
    return compare_with(generate_reference(reference, examples, settings, progress), bundle, progress)


def _compare(name: str, video: Video, reference: Video, box: Box) -> ClipComparison:
    found, expected = judge(video, box, reference=reference), judge(reference, box)
    assert found.difference is not None
    return ClipComparison(
        example=name,
        psnr_db=found.difference.psnr_db,
        worst_psnr_db=found.difference.worst_psnr_db,
        ssim=found.difference.ssim,
        lip_sync=None if found.lip_sync is None else found.lip_sync.correlation,
        reference_lip_sync=None if expected.lip_sync is None else expected.lip_sync.correlation,
    )


def comparison_table(comparison: BundleComparison, title: str) -> Table:
    """The comparison for a terminal."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("portrait", "PSNR dB", "worst frame", "SSIM", "lip sync", "reference's"):
        table.add_column(column, justify="left" if column == "portrait" else "right")
    for clip in comparison.clips:
        syncs = ("-" if sync is None else f"{sync:.3f}" for sync in (clip.lip_sync, clip.reference_lip_sync))
        table.add_row(
            clip.example, f"{clip.psnr_db:.1f}", f"{clip.worst_psnr_db:.1f}", f"{clip.ssim:.4f}", *syncs
        )
    change = comparison.lip_sync_change
    table.caption = f"mean PSNR {comparison.psnr_db:.1f} dB, worst clip {comparison.worst_psnr_db:.1f}" + (
        "" if change is None else f"; lip sync {change:+.3f} in the mean"
    )
    return table


def write_comparison(path: Path, comparison: BundleComparison) -> None:
    """Write the numbers as JSON, at once."""
    write_json(path, comparison.to_json())


def record_comparison(bundle: Path, comparison: BundleComparison) -> None:
    """Note a comparison in the bundle's manifest, in place of a parity with PyTorch."""
    manifest = open_bundle(bundle, check_digests=False).manifest
    write_manifest(bundle, replace(manifest, parity={"full_precision": comparison.to_json()}))
