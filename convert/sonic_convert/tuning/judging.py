"""Judges plans by the videos that a bundle generates with them, beside those of the published sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sonic.bundle.presets import SpeedName, SpeedPreset, SpeedPresets
from sonic.diffusion.conditioning import frame_count
from sonic.engines.registry import make_engine
from sonic.generation import load_speech
from sonic.media.audio import mono_samples
from sonic.media.video import Video
from sonic.model import SonicModel
from sonic.options import GenerationOptions
from sonic.storage.files import replacing
from sonic_calibration.quality.picture import Box
from sonic_calibration.quality.report import QualityReport, judge
from sonic_calibration.quality.video_face import largest_face, portrait_of_size
from sonic_calibration.quality.window_borders import window_borders
from sonic_calibration.recording.examples import Example, generate_example
from sonic_convert.tuning.budget import Measures

_TRIED: SpeedName = "fast"  # the preset whose place a plan takes while it is tried
_STILL_AMPLITUDE = 0.005  # below it, a mouth does not move, and a relative change means nothing
SHOWN_FRAMES = 6


@dataclass(frozen=True)
class ExactClip:
    """An example as the published sampler generates it, and its quality.

    Attributes:
        example: portrait and speech.
        options: of the clip; without a speed.
        video: of the published sampler.
        portrait: uint8 (height, width, 3), of the video's size.
        face_box: in the portrait's pixels.
        report: the video's quality.
    """

    example: Example
    options: GenerationOptions
    video: Video
    portrait: np.ndarray
    face_box: Box
    report: QualityReport

    @classmethod
    def of(
        cls,
        model: SonicModel,
        example: Example,
        options: GenerationOptions,
        video: Video,
        face_box: Box | None = None,
    ) -> ExactClip:
        """Judge a video of the published sampler.

        Args:
            model: the bundle.
            example, options: what the video shows.
            video: the video.
            face_box: of the portrait at the video's size; None detects it.

        Raises:
            InputError: the portrait shows no face.
        """
        _, height, width, _ = video.shape
        portrait = portrait_of_size(example.image, width, height)
        face_box = face_box or largest_face(portrait, model, str(example.image))
        borders = window_borders(model.constants, len(video), model.constants.sampler.steps)
        return cls(
            example,
            options,
            video,
            portrait,
            face_box,
            judge(video, face_box, portrait, None, borders or None),
        )


def denoised_frames(model: SonicModel, example: Example, options: GenerationOptions) -> int:
    """How many frames of an example are denoised."""
    audio = model.constants.audio
    sound = load_speech(example.audio, options)
    return frame_count(len(mono_samples(sound, audio.sample_rate_hz)), audio)


def kept_exact_clip(
    model: SonicModel,
    example: Example,
    options: GenerationOptions,
    path: Path,
    face_box: Box | None = None,
    generate: Callable[[SonicModel, Example, GenerationOptions], Video] = generate_example,
) -> ExactClip:
    """A clip of the published sampler whose frames are kept in a file; it is generated if there is none.

    Args:
        model: the bundle.
        example, options: the clip; `options` without a speed.
        path: an ``.npy`` file.
        face_box: of the portrait at the video's size; None detects it.
        generate: how the clip is generated.

    Raises:
        InputError: the example or an option cannot be used, or the portrait shows no face.
        BundleError: the bundle cannot be run.
        OutputError: the file cannot be written.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_array(path, np.asarray(generate(model, example, options)))
    frames = np.load(path, mmap_mode="r", allow_pickle=False)
    video = Video(frames, model.constants.video.frame_rate_hz, load_speech(example.audio, options))
    return ExactClip.of(model, example, options, video, face_box)


def with_presets(model: SonicModel, speeds: SpeedPresets) -> SonicModel:
    """A model of the same bundle with other presets."""
    bundle = model.engine.bundle
    changed = replace(bundle, manifest=replace(bundle.manifest, speeds=speeds))
    return SonicModel(make_engine(changed, model.run), model.run)


def _with_plan(model: SonicModel, preset: SpeedPreset) -> SonicModel:
    """A model that generates with a plan when the preset `_TRIED` is asked for."""
    speeds = model.manifest.speeds
    return with_presets(model, SpeedPresets(speeds.default, {**speeds.presets, _TRIED: preset}))


def judge_plan(model: SonicModel, preset: SpeedPreset, clip: ExactClip) -> tuple[Measures, np.ndarray]:
    """Generate a clip with a plan, and compare it with the published sampler's.

    Returns:
        Its measures, and some of its frames, evenly spaced: uint8 (frames, height, width, 3).

    Raises:
        BundleError: the bundle cannot be run.
    """
    video = generate_example(_with_plan(model, preset), clip.example, replace(clip.options, speed=_TRIED))
    borders = window_borders(model.constants, len(video), len(preset.steps))
    found = judge(video, clip.face_box, clip.portrait, clip.video, borders or None)
    return compare_reports(found, clip.report), shown_frames(video)


def compare_reports(found: QualityReport, exact: QualityReport) -> Measures:
    """What the quality of a clip lost; `found` was measured with the exact video as its reference."""
    assert found.difference is not None and found.identity is not None and exact.identity is not None
    lip = None
    if found.lip_sync is not None and exact.lip_sync is not None:
        lip = exact.lip_sync.correlation - found.lip_sync.correlation
    border = None
    if found.flicker.border_ratio is not None and exact.flicker.border_ratio is not None:
        border = found.flicker.border_ratio - exact.flicker.border_ratio
    moves = exact.mouth_amplitude > _STILL_AMPLITUDE
    mouth = found.mouth_amplitude / exact.mouth_amplitude if moves else 1.0
    return Measures(
        ssim=found.difference.ssim,
        psnr=found.difference.psnr_db,
        lip=lip,
        amplitude=abs(mouth - 1),
        identity=exact.identity.psnr_db - found.identity.psnr_db,
        sharpness=abs(found.sharpness.variance / exact.sharpness.variance - 1)
        if exact.sharpness.variance
        else 0.0,
        border=border,
        mouth=mouth,
    )


def shown_frames(video: Video) -> np.ndarray:
    """Some frames of a video, evenly spaced: uint8 (frames, height, width, 3)."""
    chosen = np.linspace(0, len(video) - 1, min(SHOWN_FRAMES, len(video))).round().astype(int)
    return np.stack([np.asarray(video[int(index)]) for index in chosen])


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an ``.npy`` file, completely or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as partial:
        np.save(partial, array)


__all__ = [
    "SHOWN_FRAMES",
    "ExactClip",
    "compare_reports",
    "denoised_frames",
    "judge_plan",
    "kept_exact_clip",
    "save_array",
    "shown_frames",
    "with_presets",
]
