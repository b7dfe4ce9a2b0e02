"""Decoding and interpolating with several calls at once: frames, order and bounds."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.bundle.constants import VideoConstants
from sonic.diffusion.decoding import decode, interpolate

CONSTANTS = VideoConstants(decode_chunk_frames=4, latent_scale=0.5)


class SlowSession:
    """Answers after a while that differs from call to call, and counts the calls at the same time."""

    def __init__(self, seed: int = 0) -> None:
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._running = 0
        self.most_at_once = 0
        self.calls: list[int] = []

    def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> dict[str, np.ndarray]:
        with self._lock:
            self.calls.append(tags["first_frame"])
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            wait = self._random.random() / 2000
        time.sleep(wait)
        outputs = self.compute(inputs)
        with self._lock:
            self._running -= 1
        return outputs

    def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def __enter__(self) -> SlowSession:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class Decoder(SlowSession):
    """Mixes the frames of a chunk: each becomes itself, less the chunk's mean."""

    def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        latents = inputs["latents"]
        assert len(latents) <= CONSTANTS.decode_chunk_frames
        return {"images": (latents - latents.mean(axis=0))[:, :3]}


class Interpolator(SlowSession):
    """Answers with the mean of two frames, out of the range of a picture."""

    def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"middle": (inputs["frame_0"] + inputs["frame_1"]) / 2 + np.float32(0.3)}


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 21), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_frames_do_not_depend_on_the_calls_at_once(
    frames: int, decoding: int, interpolating: int, seed: int
) -> None:
    latents = np.random.default_rng(seed).standard_normal((frames, 4, 2, 3)).astype(np.float32)
    decoder, interpolator = Decoder(seed), Interpolator(seed)
    with ThreadPoolExecutor(max(decoding, interpolating)) as pool:
        pictures = decode(latents, decoder, CONSTANTS, pool, decoding)
        found = list(interpolate(pictures, interpolator, pool, interpolating))
    expected = []
    for start in range(0, frames, 4):
        chunk = latents[start : start + 4] / np.float32(0.5)
        images = (chunk - chunk.mean(axis=0))[:, :3]
        expected += list(np.clip(images * np.float32(0.5) + np.float32(0.5), 0, 1))
    between = [
        np.clip((first + second) / 2 + np.float32(0.3), 0, 1)
        for first, second in zip(expected, expected[1:], strict=False)
    ]
    assert len(found) == 2 * frames - 1
    np.testing.assert_array_equal(np.stack(found[::2]), np.stack(expected))
    if between:
        np.testing.assert_array_equal(np.stack(found[1::2]), np.stack(between))
    assert decoder.most_at_once <= decoding and interpolator.most_at_once <= interpolating
    assert sorted(decoder.calls) == list(range(0, frames, 4))
    assert sorted(interpolator.calls) == list(range(frames - 1))


def test_chunks_are_decoded_at_the_same_time_and_not_far_ahead() -> None:
    together = threading.Barrier(3)

    class Waiting(Decoder):
        def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            together.wait(10)  # fails unless three are here
            return super().compute(inputs)

    decoder = Waiting()
    latents = np.zeros((24, 4, 2, 2), np.float32)
    with ThreadPoolExecutor(3) as pool, closing(decode(latents, decoder, CONSTANTS, pool, 3)) as pictures:
        next(pictures)
        assert sorted(decoder.calls) == [0, 4, 8]
        for _ in range(4):
            next(pictures)
        # The frames of the first chunk were used, which makes room for one more.
        together.abort()
        assert max(decoder.calls) <= 12


def test_nothing_becomes_nothing() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert list(interpolate([], Interpolator(), pool, 2)) == []


def test_an_error_of_the_decoder_ends_the_frames() -> None:
    class Broken(Decoder):
        def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if np.any(inputs["latents"] == 2):
                raise ValueError("broken")
            return super().compute(inputs)

    latents = np.zeros((24, 4, 2, 2), np.float32)
    latents[5] = 1  # becomes 2 by the scale
    seen: list[np.ndarray] = []

    def collect(pictures: Iterator[np.ndarray]) -> None:
        seen.extend(pictures)

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="broken"):
        collect(interpolate(decode(latents, Broken(), CONSTANTS, pool, 2), Interpolator(), pool, 2))
    assert len(seen) <= 7  # four frames of the first chunk, and those between
