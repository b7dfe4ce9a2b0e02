"""From latents to finished frames, a few at a time: decode, interpolate, smooth, quantize."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from itertools import chain, pairwise

import numpy as np

from sonic.bundle.constants import VideoConstants
from sonic.engines.base import Session
from sonic.media.smoothing import TemporalSmoother
from sonic.storage.prefetch import map_ahead
from sonic.storage.spool import ArraySpool


def decode(
    latents: np.ndarray | ArraySpool,
    vae_decoder: Session,
    constants: VideoConstants,
    pool: Executor,
    calls_at_once: int = 1,
) -> Iterator[np.ndarray]:
    """Decode latents (frames, 4, h, w), chunk by chunk, to frames (3, H, W) float32 in 0..1.

    The temporal decoder mixes the frames of a chunk, so the result depends on the chunk length, which is
    therefore one of the bundle's constants. Chunks do not depend on each other: `pool` decodes up to
    `calls_at_once` at the same time.
    """

    def decoded(start: int) -> np.ndarray:
        chunk = latents[start : start + constants.decode_chunk_frames]
        inputs = {"latents": chunk / np.float32(constants.latent_scale)}
        images = vae_decoder.run(inputs, first_frame=start)["images"]
        frames: np.ndarray = np.clip(images * np.float32(0.5) + np.float32(0.5), 0.0, 1.0)
        return frames

    starts = range(0, len(latents), constants.decode_chunk_frames)
    for frames in map_ahead(decoded, starts, pool, calls_at_once):
        yield from frames


def interpolate(
    frames: Iterable[np.ndarray], interpolator: Session, pool: Executor, calls_at_once: int = 1
) -> Iterator[np.ndarray]:
    """Insert a frame between every two: n frames (3, H, W) float32 in 0..1 become 2n - 1.

    `pool` computes up to `calls_at_once` of them at the same time.
    """

    def between(numbered: tuple[int, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        index, (first, second) = numbered
        inputs = {"frame_0": first[None], "frame_1": second[None]}
        middle = interpolator.run(inputs, first_frame=index)["middle"][0]
        return np.clip(middle, 0.0, 1.0), second

    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        return
    yield first
    pairs = enumerate(pairwise(chain([first], remaining)))
    for pair in map_ahead(between, pairs, pool, calls_at_once):
        yield from pair


def smooth(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Remove temporal jitter (see :class:`sonic.media.smoothing.TemporalSmoother`)."""
    smoother = TemporalSmoother()
    for frame in frames:
        yield from smoother.push(frame)
    yield from smoother.flush()


def hold_last(frames: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield exactly `count` frames: the last one is repeated, or the surplus is dropped.

    n generated frames become 2n - 1 at twice the rate, which end up to three frames before the sound does.
    """
    last: np.ndarray | None = None
    shown = 0
    for frame in frames:
        if shown < count:
            yield frame
        last, shown = frame, shown + 1
    assert last is not None
    for _ in range(count - shown):
        yield last


def quantize(frame: np.ndarray) -> np.ndarray:
    """(3, H, W) float in 0..1 -> (H, W, 3) uint8, truncated as the published code does."""
    return (frame * np.float32(255.0)).astype(np.uint8).transpose(1, 2, 0)
