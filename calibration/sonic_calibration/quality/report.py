"""All quality metrics of one video, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sonic.errors import InputError
from sonic.media.video import Video
from sonic.progress import NoProgress, Progress
from sonic.storage.files import write_json
from sonic_calibration.quality.identity import Identity, IdentityMeter
from sonic_calibration.quality.mouth import (
    LipSync,
    MouthOpeningMeter,
    closed_in_silence,
    lip_sync,
    mouth_amplitude,
    speech_opening,
)
from sonic_calibration.quality.picture import (
    Box,
    Flicker,
    FlickerMeter,
    Frame,
    Sharpness,
    SharpnessMeter,
    VideoDifference,
    check_frame,
    compare_videos,
    luma_of,
)


@dataclass(frozen=True)
class QualityReport:
    """The result of `judge`.

    Attributes:
        frames: number of frames.
        height, width: of the frames, in pixels.
        frame_rate_hz: frames per second.
        face_box: (x1, y1, x2, y2) in pixels.
        mouth_amplitude: how much the mouth moves, 0..1.
        lip_sync: how well the mouth follows the sound; None without sound.
        closed_in_silence: how far open the mouth is during silence, from 0 (closed) to 1; None without
            sound, or if speech never pauses.
        sharpness, flicker: of the frames.
        identity: similarity to the portrait; None without a portrait.
        difference: difference from the reference video; None without a reference.
    """

    frames: int
    height: int
    width: int
    frame_rate_hz: float
    face_box: Box
    mouth_amplitude: float
    lip_sync: LipSync | None
    closed_in_silence: float | None
    sharpness: Sharpness
    flicker: Flicker
    identity: Identity | None
    difference: VideoDifference | None

    def to_json(self) -> dict[str, object]:
        """The report as a dictionary for JSON; metrics that were not measured are None."""
        return asdict(self) | {"face_box": list(self.face_box)}


def judge(
    video: Video,
    face_box: Box,
    portrait: Frame | None = None,
    reference: Video | None = None,
    window_borders: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> QualityReport:
    """Measure the quality of a talking-head video, one frame at a time.

    Args:
        video: the video; lip sync is measured only if it has sound.
        face_box: (x1, y1, x2, y2) of the face in pixels of the video.
        portrait: uint8 (height, width, 3) of the video's size, to compare the face with.
        reference: a video of the same shape, to compare the frames with.
        window_borders: the first frame of every denoising window but the first, where flicker may show.
        progress: reports the stages.

    Raises:
        InputError: the video has no frames, the face box lies outside it, the portrait or the reference has
            another shape, or a border is not a frame of the video.
    """
    frames, height, width, _ = video.shape
    if not frames:
        raise InputError("there are no frames to measure; give a video with at least one")
    progress = progress or NoProgress()
    mouth_meter = MouthOpeningMeter(face_box)
    sharpness_meter = SharpnessMeter(portrait)
    flicker_meter = FlickerMeter(face_box)
    identity_meter = None
    if portrait is not None:
        if check_frame(portrait).shape != video.shape[1:]:
            raise InputError(
                f"a portrait of {portrait.shape[1]}x{portrait.shape[0]} pixels should have the video's "
                f"{width}x{height}"
            )
        identity_meter = IdentityMeter(portrait, face_box)
    difference = None
    if reference is not None:
        with progress.stage("comparing", 1) as advance:
            difference = compare_videos(video, reference)
            advance()
    with progress.stage("measuring", frames) as advance:
        for frame in video:
            mouth_meter.update(frame)
            luma = luma_of(frame)
            sharpness_meter.update(luma)
            flicker_meter.update(luma)
            if identity_meter is not None:
                identity_meter.update(frame)
            advance()
    measured = mouth_meter.signal
    sync = closed = None
    if video.sound is not None:
        driven = speech_opening(video.sound, frames, video.frame_rate_hz)
        sync = lip_sync(measured, driven, video.frame_rate_hz)
        closed = closed_in_silence(measured, driven)
    return QualityReport(
        frames=frames,
        height=height,
        width=width,
        frame_rate_hz=video.frame_rate_hz,
        face_box=(float(face_box[0]), float(face_box[1]), float(face_box[2]), float(face_box[3])),
        mouth_amplitude=mouth_amplitude(measured),
        lip_sync=sync,
        closed_in_silence=closed,
        sharpness=sharpness_meter.result,
        flicker=flicker_meter.result(window_borders),
        identity=None if identity_meter is None else identity_meter.result,
        difference=difference,
    )


def quality_table(report: QualityReport, title: str = "quality") -> Table:
    """The report as a table for a terminal of 80 columns: metric, value, and how to read it."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("meaning", style="dim")
    for rows in _sections(report):
        for row in rows:
            table.add_row(*row)
        table.add_section()
    table.caption = (
        f"{report.frames} frames of {report.width} x {report.height} at {report.frame_rate_hz:g} Hz; "
        f"face box {', '.join(f'{value:.0f}' for value in report.face_box)}"
    )
    return table


def _sections(report: QualityReport) -> list[list[tuple[str, str, str]]]:
    mouth = []
    sync, closed = report.lip_sync, report.closed_in_silence
    if sync is None:
        mouth.append(("lip sync", "-", "the video has no sound"))
    else:
        lag = f"{sync.lag_frames:+d} frames" if abs(sync.lag_frames) != 1 else f"{sync.lag_frames:+d} frame"
        mouth += [
            ("lip sync", f"{sync.correlation:.3f}", "correlation with the sound; 1 is perfect"),
            ("  best", f"{sync.best_correlation:.3f}", f"at {lag} ({sync.lag_seconds * 1000:+.0f} ms); "
             "+ means a late mouth"),
        ]  # fmt: skip
    mouth.append(("mouth amplitude", f"{report.mouth_amplitude:.3f}", "dark share of the mouth, p95 - p5"))
    mouth.append(
        ("open in silence", "-" if closed is None else f"{closed:.3f}", "0 closed, 1 open as in speech")
    )
    sharpness, flicker = report.sharpness, report.flicker
    ratio = "" if sharpness.ratio is None else f"; {sharpness.ratio:.2f} of the portrait's"
    pictures = [
        ("sharpness", f"{sharpness.variance:.1f}", f"variance of the Laplacian{ratio}"),
        ("flicker", f"{flicker.difference:.3f}", "luma levels between frames, mouth excluded"),
        ("strobe", f"{flicker.strobe:.3f}", "luma levels, second difference of the mean"),
    ]
    if flicker.border_ratio is not None:
        pictures.append(("  at borders", f"{flicker.border_ratio:.2f}", "vs. other frames; 1 is ideal"))
    sections = [mouth, pictures]
    if report.identity is not None:
        face = report.identity
        sections.append([
            ("identity", f"{face.psnr_db:.1f} dB", f"face vs. portrait; SSIM {face.ssim:.3f}"),
            ("  aligned", f"{face.aligned_psnr_db:.1f} dB",
             f"without {face.motion_pixels:.2f} px motion; SSIM {face.aligned_ssim:.3f}"),
            ("  worst frame", f"{face.worst_aligned_psnr_db:.1f} dB", f"aligned, frame {face.worst_frame}"),
            ("whole picture", f"{face.picture_psnr_db:.1f} dB", "frame vs. portrait, mouth excluded"),
        ])  # fmt: skip
    if report.difference is not None:
        difference = report.difference
        sections.append([
            ("reference", f"{difference.psnr_db:.1f} dB", f"vs. the other video; SSIM {difference.ssim:.4f}"),
            ("  worst frame", f"{difference.worst_psnr_db:.1f} dB", f"frame {difference.worst_frame}"),
            ("  gradients", f"{difference.gradient_distance:.4f}", "distance of edges; 0 is equal"),
        ])  # fmt: skip
    return sections


def write_quality(path: Path, report: QualityReport) -> None:
    """Write the report as JSON, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    write_json(path, report.to_json())
