"""From a recording and a portrait's embedding to the conditioning of every frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonic.bundle.constants import AudioConstants
from sonic.engines.base import Engine
from sonic.media.audio import log_mel
from sonic.storage.spool import ArraySpool

_FRAMES_PER_RUN = 25


@dataclass(frozen=True)
class AudioConditioning:
    """The audio conditioning of a clip: one entry for each generated frame (12.5 per second).

    Attributes:
        tokens: (frames, tokens, width) float32, on disk when large.
        unconditional_tokens: (tokens, width) float32, the tokens for all-zero encoder states.
        buckets: (frames, 2) float32, translation and expression motion buckets, before `dynamic_scale`
            and `motion_scale`.
    """

    tokens: ArraySpool
    unconditional_tokens: np.ndarray
    buckets: np.ndarray


class SlidingWindows:
    """Cuts a zero-padded sequence that arrives in pieces into overlapping windows.

    It keeps only what later windows still need.

    Args:
        padding: number of zero states before and after the sequence.
        window: length of a window in states.
        stride: states from one window's start to the next.
        count: total number of windows.
    """

    def __init__(self, padding: tuple[int, int], window: int, stride: int, count: int) -> None:
        self._before, self._after = padding
        self._window, self._stride, self._left = window, stride, count
        self._buffer: np.ndarray | None = None
        self._skip = 0  # states to skip before the next window, where there are gaps between windows

    def push(self, states: np.ndarray) -> np.ndarray:
        """Add states (n, ...); returns the windows that are now complete, (k, window, ...)."""
        if self._buffer is None:
            self._buffer = np.zeros((self._before, *states.shape[1:]), states.dtype)
        buffer = np.concatenate([self._buffer, states])
        skipped = min(self._skip, len(buffer))
        buffer, self._skip = buffer[skipped:], self._skip - skipped
        ready = max(0, (len(buffer) - self._window) // self._stride + 1)
        ready = min(ready, self._left)
        starts = np.arange(ready) * self._stride
        windows: np.ndarray = buffer[starts[:, None] + np.arange(self._window)]
        consumed = ready * self._stride
        self._skip += max(0, consumed - len(buffer))
        self._buffer = buffer[consumed:]
        self._left -= ready
        return windows

    def finish(self) -> np.ndarray:
        """Add the padding at the end; returns the last windows, (k, window, ...)."""
        assert self._buffer is not None
        return self.push(np.zeros((self._after, *self._buffer.shape[1:]), self._buffer.dtype))


def frame_count(samples: int, constants: AudioConstants) -> int:
    """How many frames are generated for this many audio samples."""
    return samples // constants.unit_samples // constants.units_per_frame


def condition_on_audio(
    samples: np.ndarray,
    image_embedding: np.ndarray,
    mel_filters: np.ndarray,
    engine: Engine,
    constants: AudioConstants,
    advance: Callable[[], None] = lambda: None,
    spool_directory: Path | None = None,
) -> AudioConditioning:
    """Encode a recording, one 30-second window at a time.

    Args:
        samples: (n,) float32 mono at `constants.sample_rate_hz`.
        image_embedding: (1, width) float32.
        mel_filters: (frequencies, mel bins) float32.
        engine: runs the audio encoder and the two audio heads.
        constants: window lengths, paddings and bucket scale of the bundle.
        advance: called after every 30-second window.
        spool_directory: folder of the temporary file that holds the tokens of long recordings; the
            system's temporary folder by default.

    Raises:
        BundleError: a submodel cannot be loaded.
        OutputError: the tokens cannot be stored.
    """
    frames = frame_count(len(samples), constants)
    states_left = len(samples) // constants.unit_samples * constants.states_per_unit
    stride = constants.states_per_frame
    token_windows = SlidingWindows(
        constants.token_padding_states, constants.token_window_states, stride, frames
    )
    bucket_windows = SlidingWindows(
        constants.bucket_padding_states, constants.bucket_window_states, stride, frames
    )
    with (
        engine.open("audio_encoder") as audio_encoder,
        engine.open("audio2token") as audio2token,
        engine.open("audio2bucket") as audio2bucket,
    ):

        def tokens_of(windows: np.ndarray) -> np.ndarray:
            tokens: np.ndarray = audio2token.run({"audio_windows": windows[None]})["audio_tokens"][0]
            return tokens

        def buckets_of(windows: np.ndarray) -> np.ndarray:
            inputs = {"audio_windows": windows[None], "image_embedding": image_embedding}
            buckets: np.ndarray = audio2bucket.run(inputs)["buckets"][0, :, :, 0]
            return buckets

        tokens: ArraySpool | None = None
        unconditional: np.ndarray | None = None
        buckets: list[np.ndarray] = []

        def take(token_part: np.ndarray, bucket_part: np.ndarray) -> None:
            nonlocal tokens, unconditional
            if unconditional is None:
                silence = np.zeros((1, *token_part.shape[1:]), np.float32)
                unconditional = tokens_of(silence)[0]
                tokens = ArraySpool(unconditional.shape, np.float32, directory=spool_directory)
            assert tokens is not None
            for start in range(0, len(token_part), _FRAMES_PER_RUN):
                tokens.append(tokens_of(token_part[start : start + _FRAMES_PER_RUN]))
            for start in range(0, len(bucket_part), _FRAMES_PER_RUN):
                buckets.append(buckets_of(bucket_part[start : start + _FRAMES_PER_RUN]))

        for start in range(0, len(samples), constants.window_samples):
            window = samples[start : start + constants.window_samples]
            features = log_mel(window, mel_filters, constants)
            states = audio_encoder.run({"log_mel": features})["hidden_states"][0]
            states = states[: max(0, states_left)]
            states_left -= len(states)
            take(token_windows.push(states), bucket_windows.push(states[:, -1:]))
            advance()
        take(token_windows.finish(), bucket_windows.finish())

    assert tokens is not None and unconditional is not None
    scaled = np.concatenate(buckets) * constants.bucket_scale + constants.bucket_offset
    return AudioConditioning(tokens, unconditional, scaled.astype(np.float32))
