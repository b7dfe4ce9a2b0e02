"""Drawn clips of speaking people, the training data of the denoiser."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sonic.bundle.constants import Constants
from sonic.media.portrait import prepare_portrait
from sonic.storage.files import replace_file
from sonic_convert.drawing.face import Look, Pose
from sonic_training import mouth
from sonic_training.actors import (
    EXPRESSION_BUCKET_OF_NORMAL_SPEECH,
    MOTION_BUCKET_OF_FULL_MOTION,
    Framing,
    draw_poses,
    head_motion,
    random_framing,
    random_look,
)
from sonic_training.speech import Corpus, SpeechClip

FRAME_RATE_HZ = Constants().video.generated_frame_rate_hz
_MIDDLE_GAIN_DB = -5.5  # the middle of the corpus's gains, -14..3


@dataclass(frozen=True)
class ClipOptions:
    """Size and motion of the drawn clips.

    Attributes:
        frames: number of frames of a clip.
        size_pixels: side of the square frames.
        frame_rate_hz: frames per second.
        head_motion: scale of the head motion; 1 turns heads by a few degrees.
    """

    frames: int = 38
    size_pixels: int = 128
    frame_rate_hz: float = FRAME_RATE_HZ
    head_motion: float = 1.0


@dataclass(frozen=True)
class Clip:
    """One drawn clip and its conditioning.

    Attributes:
        frames: uint8 (frames, size, size, 3).
        portrait: uint8 (size, size, 3), the portrait given to the model.
        reference: float32 (3, size, size), -1..1, the portrait as the VAE's input.
        image_encoder_input: float32 (3, 224, 224), the portrait as the image encoder's input.
        face_mask: float32 (size, size), 0..1.
        heard: float32 (samples,), mono at 16 kHz, the speech given to the model.
        buckets: float32 (2,), translation and expression buckets.
        opening: float32 (frames,), the opening of the drawn mouth.
        mouth_box: float32 (4,), x1, y1, x2, y2 of mouth and chin in pixels.
    """

    frames: NDArray[np.uint8]
    portrait: NDArray[np.uint8]
    reference: NDArray[np.float32]
    image_encoder_input: NDArray[np.float32]
    face_mask: NDArray[np.float32]
    heard: NDArray[np.float32]
    buckets: NDArray[np.float32]
    opening: NDArray[np.float32]
    mouth_box: NDArray[np.float32]


def draw_clip(generator: np.random.Generator, corpus: Corpus, options: ClipOptions) -> Clip:
    """Draw a clip of a random person with random speech and random motion."""
    look, framing = random_look(generator), random_framing(generator, options.size_pixels)
    speech = corpus.clip(generator, options.frames / options.frame_rate_hz)
    amount, amplitude = random_liveliness(generator, speech)
    poses = head_motion(generator, options.frames, options.frame_rate_hz, amount * options.head_motion)
    opening = amplitude * mouth.opening(speech.clean, options.frames, options.frame_rate_hz)
    spread = mouth.spread(speech.clean, options.frames, options.frame_rate_hz)
    poses = [
        replace(pose, mouth_opening=float(o), mouth_spread=float(s))
        for pose, o, s in zip(poses, opening, spread, strict=True)
    ]
    frames = draw_poses(look, poses, framing)
    portrait = draw_poses(look, [_portrait_pose(generator, poses)], framing)[0]
    box = _noisy_box(generator, framing)
    prepared = prepare_portrait(Image.fromarray(portrait), box, options.size_pixels, Constants().portrait)
    return Clip(
        frames=frames,
        portrait=portrait,
        reference=prepared.reference[0],
        image_encoder_input=prepared.image_encoder_input[0],
        face_mask=prepared.face_mask.reshape(options.size_pixels, options.size_pixels),
        heard=speech.heard,
        buckets=motion_buckets(amount, amplitude),
        opening=opening.astype(np.float32),
        mouth_box=np.array(_mouth_box(framing), np.float32),
    )


def random_liveliness(generator: np.random.Generator, speech: SpeechClip) -> tuple[float, float]:
    """Random head motion (0.02..1.2) and mouth amplitude (0.25..1.5); louder speakers move more."""
    louder = (speech.gain_db - _MIDDLE_GAIN_DB) / 10
    amount = np.clip(0.45 + 0.15 * louder + generator.normal(0, 0.25), 0.02, 1.2)
    amplitude = np.clip(0.9 + 0.2 * louder + generator.normal(0, 0.25), 0.25, 1.5)
    return float(amount), float(amplitude)


def motion_buckets(amount: float, amplitude: float) -> NDArray[np.float32]:
    """Conditioning of the UNet for a head motion and a mouth amplitude, float32 (2,)."""
    return np.array(
        [amount * MOTION_BUCKET_OF_FULL_MOTION, amplitude * EXPRESSION_BUCKET_OF_NORMAL_SPEECH], np.float32
    )


def _portrait_pose(generator: np.random.Generator, poses: list[Pose]) -> Pose:
    """The portrait's pose: mostly a closed mouth and open eyes, sometimes that of a frame of the clip."""
    if generator.random() < 0.15:
        return poses[int(generator.integers(len(poses)))]
    still = poses[0] if generator.random() < 0.5 else Pose()
    return replace(still, mouth_opening=0.0, blink=0.0, mouth_spread=float(generator.uniform(-0.2, 0.4)))


def _noisy_box(generator: np.random.Generator, framing: Framing) -> tuple[float, float, float, float]:
    """The face box with the errors that a detector would make."""
    x1, y1, x2, y2 = framing.face_box
    wide, tall = x2 - x1, y2 - y1
    noise = generator.normal(0, 0.02, 4)
    limit = framing.size_pixels
    return (
        max(x1 + noise[0] * wide, 0.0),
        max(y1 + noise[1] * tall, 0.0),
        min(x2 + noise[2] * wide, limit),
        min(y2 + noise[3] * tall, limit),
    )


def _mouth_box(framing: Framing) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = framing.face_box
    wide, tall = x2 - x1, y2 - y1
    return x1 + 0.22 * wide, y1 + 0.64 * tall, x2 - 0.22 * wide, y2 + 0.06 * tall


def look_targets(look: Look, framing: Framing) -> NDArray[np.float32]:
    """Targets of the image encoder: colours, place, size, hair, beard, glasses; float32 (n,), about -1..1."""
    colors = [*look.skin, *look.hair, *look.clothes, *look.background[0], *look.eyes]
    place = [framing.centre[0], framing.centre[1], framing.face_width_pixels]
    style = [float(look.hair_style == name) for name in ("short", "long", "bun", "bald")]
    return np.array(
        [
            *(color / 127.5 - 1 for color in colors),
            *(4 * (value / framing.size_pixels - 0.5) for value in place),
            *style,
            look.beard,
            float(look.glasses),
        ],
        np.float32,
    )


def draw_shard(task: tuple[str, str, int, int, int, ClipOptions]) -> str:
    """Draw one file of clips, unless it exists.

    Args:
        task: output folder, corpus folder, seed, number of the first clip, number of clips, options.

    Returns:
        The file's path.
    """
    folder, corpus_folder, seed, start, count, options = task
    path = Path(folder) / f"clips-{seed}-{start:05d}.npz"
    if path.exists():
        return str(path)
    corpus = Corpus(Path(corpus_folder))
    clips = [
        draw_clip(np.random.default_rng([seed, 7, start + index]), corpus, options) for index in range(count)
    ]
    arrays = {name: np.stack([getattr(clip, name) for clip in clips]) for name in Clip.__dataclass_fields__}
    # The temporary name ends in .npz too, so NumPy does not append it.
    replace_file(path, lambda partial: np.savez(partial, **arrays))  # type: ignore[arg-type]
    return str(path)


def draw_clips(
    folder: Path, corpus_folder: Path, seed: int, count: int, options: ClipOptions, shard: int = 20
) -> list[Path]:
    """Draw `count` clips with one process per core; files that exist are not drawn again.

    Args:
        folder: where the files go.
        corpus_folder: a speech corpus (`sonic_training.speech.build_corpus`).
        seed: of people, speech and motion.
        count: number of clips.
        options: size and motion of the clips.
        shard: clips per file.

    Returns:
        The .npz files; each holds the stacked attributes of `Clip`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        (str(folder), str(corpus_folder), seed, start, min(shard, count - start), options)
        for start in range(0, count, shard)
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [Path(path) for path in pool.map(draw_shard, tasks)]
