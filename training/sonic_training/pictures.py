"""Short silent clips of random people, the training data of the autoencoder."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonic_training.actors import draw_poses, head_motion, random_framing, random_look

FRAMES_PER_CLIP = 4
_SHARD_CLIPS = 250


@dataclass(frozen=True)
class Pictures:
    """Drawn clips of 4 frames.

    Attributes:
        frames: uint8 (clips, 4, size, size, 3).
        boxes: float32 (clips, 4), face boxes x1, y1, x2, y2 in pixels.
    """

    frames: NDArray[np.uint8]
    boxes: NDArray[np.float32]


def load_pictures(folder: Path, clips: int, size_pixels: int, seed: int) -> Pictures:
    """Load the clips as a memory map; draw them first if they do not exist, with one process per core.

    Args:
        folder: where the clips are stored.
        clips: number of clips.
        size_pixels: side of the square frames.
        seed: of people and poses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames_path = folder / f"pictures-{seed}-{clips}.npy"
    boxes_path = folder / f"pictures-{seed}-{clips}.boxes.npy"
    if not (frames_path.exists() and boxes_path.exists()):
        shards = [
            (seed, start, min(_SHARD_CLIPS, clips - start), size_pixels)
            for start in range(0, clips, _SHARD_CLIPS)
        ]
        temporary = frames_path.with_name(f".{frames_path.name}")
        shape = (clips, FRAMES_PER_CLIP, size_pixels, size_pixels, 3)
        frames = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        boxes = np.zeros((clips, 4), np.float32)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for (_, start, count, _), (shard_frames, shard_boxes) in zip(
                shards, pool.map(_draw_shard, shards), strict=True
            ):
                frames[start : start + count] = shard_frames
                boxes[start : start + count] = shard_boxes
        frames.flush()
        with open(boxes_path, "wb") as file:
            np.save(file, boxes)
        os.replace(temporary, frames_path)
    return Pictures(np.load(frames_path, mmap_mode="r"), np.load(boxes_path))


def _draw_shard(task: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    seed, start, count, size = task
    frames = np.zeros((count, FRAMES_PER_CLIP, size, size, 3), np.uint8)
    boxes = np.zeros((count, 4), np.float32)
    for index in range(count):
        generator = np.random.default_rng([seed, start + index])
        look, framing = random_look(generator), random_framing(generator, size)
        amount = float(generator.uniform(0, 1.5))
        poses = head_motion(generator, 8 * FRAMES_PER_CLIP, 12.5, amount)[-FRAMES_PER_CLIP:]
        openings = np.clip(generator.uniform(-0.3, 1.3) + generator.normal(0, 0.3, FRAMES_PER_CLIP), 0, 1.4)
        spreads = generator.uniform(-1, 1, FRAMES_PER_CLIP)
        poses = [
            replace(pose, mouth_opening=float(opening), mouth_spread=float(spread),
                    blink=float(generator.random() < 0.1) or pose.blink)
            for pose, opening, spread in zip(poses, openings, spreads, strict=True)
        ]  # fmt: skip
        frames[index] = draw_poses(look, poses, framing)
        boxes[index] = framing.face_box
    return frames, boxes
