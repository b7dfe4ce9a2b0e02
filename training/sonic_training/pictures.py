"""Short silent clips of random people, for the parts that look at pictures."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonic_training.actors import draw_poses, head_motion, random_framing, random_look

FRAMES_A_CLIP = 4
_SHARD_CLIPS = 250


@dataclass(frozen=True)
class Pictures:
    """Drawn clips: uint8 (clips, 4, size, size, 3), and the face boxes (clips, 4), x1 y1 x2 y2."""

    frames: NDArray[np.uint8]
    boxes: NDArray[np.float32]


def load_pictures(folder: Path, clips: int, size_pixels: int, seed: int) -> Pictures:
    """Draw what is missing (in two processes) and open everything as memory maps."""
    folder.mkdir(parents=True, exist_ok=True)
    frames_path = folder / f"pictures-{seed}-{clips}.npy"
    boxes_path = folder / f"pictures-{seed}-{clips}.boxes.npy"
    if not (frames_path.exists() and boxes_path.exists()):
        shards = [
            (seed, start, min(_SHARD_CLIPS, clips - start), size_pixels)
            for start in range(0, clips, _SHARD_CLIPS)
        ]
        temporary = frames_path.with_name(f".{frames_path.name}")
        shape = (clips, FRAMES_A_CLIP, size_pixels, size_pixels, 3)
        frames = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        boxes = np.zeros((clips, 4), np.float32)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for (_, start, count, _), (drawn, where) in zip(
                shards, pool.map(_draw_shard, shards), strict=True
            ):
                frames[start : start + count] = drawn
                boxes[start : start + count] = where
        frames.flush()
        with open(boxes_path, "wb") as file:
            np.save(file, boxes)
        os.replace(temporary, frames_path)
    return Pictures(np.load(frames_path, mmap_mode="r"), np.load(boxes_path))


def _draw_shard(task: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    seed, start, count, size = task
    frames = np.zeros((count, FRAMES_A_CLIP, size, size, 3), np.uint8)
    boxes = np.zeros((count, 4), np.float32)
    for index in range(count):
        generator = np.random.default_rng([seed, start + index])
        look, framing = random_look(generator), random_framing(generator, size)
        amount = float(generator.uniform(0, 1.5))
        poses = head_motion(generator, 8 * FRAMES_A_CLIP, 12.5, amount)[-FRAMES_A_CLIP:]
        openings = np.clip(generator.uniform(-0.3, 1.3) + generator.normal(0, 0.3, FRAMES_A_CLIP), 0, 1.4)
        spreads = generator.uniform(-1, 1, FRAMES_A_CLIP)
        poses = [
            replace(pose, mouth_opening=float(opening), mouth_spread=float(spread),
                    blink=float(generator.random() < 0.1) or pose.blink)
            for pose, opening, spread in zip(poses, openings, spreads, strict=True)
        ]  # fmt: skip
        frames[index] = draw_poses(look, poses, framing)
        boxes[index] = framing.face_box
    return frames, boxes
