"""From a sound file to the audio encoder's input.

A recording is decoded at its own rate and kept as 16-bit samples: the same samples go to the finished
video and, resampled, to the audio encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import soxr

from sonic.bundle.constants import AudioConstants
from sonic.errors import InputError, warn
from sonic.media.checks import open_input
from sonic.media.intake import decoded, warn_of
from sonic.media.levels import FULL_SCALE, Levels
from sonic.options import IntakeLimits
from sonic.sandbox.process import Decoding
from sonic.sandbox.settings import SoundSettings
from sonic.storage.spool import ArraySpool

MINIMUM_SECONDS = 0.1
SILENCE_PEAK_DBFS = -80.0
# Longer sounds are kept in a temporary file.
_IN_MEMORY_BYTES = 64 * 2**20
_RESAMPLED_AT_ONCE = 2**20


@dataclass(frozen=True, eq=False)
class Sound:
    """A recording.

    Attributes:
        samples: int16 (n, channels), one or two channels; of a long recording, a read-only map of a file.
        sample_rate_hz: samples per second and channel.
    """

    samples: np.ndarray
    sample_rate_hz: int

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate_hz


def load_sound(
    path: str | PathLike[str],
    maximum_seconds: float | None = None,
    limits: IntakeLimits | None = None,
    spool_directory: Path | None = None,
) -> Sound:
    """Decode the first audio stream of a file at its own sample rate.

    A confined process decodes it (:mod:`sonic.sandbox`), while this one takes the samples: long sounds are
    kept in a temporary file, which is mapped. Encoder delays that the file declares (MP3, M4A, Opus) are
    removed. Mono and stereo stay as they are; more channels are mixed down to stereo by FFmpeg.
    Floating-point sources are clipped to full scale, infinities too.

    A warning notes a sound that ends before the length its file states, that is clipped, or whose two
    channels cancel each other.

    Args:
        path: a sound file, or a video file with sound.
        maximum_seconds: decode at most this much, from the beginning.
        limits: of file, length, samples, and decoding; the environment's by default
            (:meth:`sonic.options.IntakeLimits.from_environment`).
        spool_directory: folder of the temporary file; the system's temporary folder by default.

    Raises:
        InputError: the file is missing, not a regular file, empty or damaged; it has no audio
            stream, an unusable sample rate, or samples that are not numbers; it is larger or longer than the
            limits, or decoding takes more time or memory; it is shorter than 0.1 s or silent (peak below
            -80 dBFS); or `maximum_seconds` is below 0.1 s.
        OutputError: the temporary file cannot be written.
        SonicError: the decoding process cannot be started.
    """
    if maximum_seconds is not None and not MINIMUM_SECONDS <= maximum_seconds < math.inf:
        raise InputError(
            f"the maximum length of the sound is {maximum_seconds} s; "
            f"it should be {MINIMUM_SECONDS} s or more"
        )
    path, limits = Path(path), limits or IntakeLimits.from_environment()
    settings = SoundSettings(maximum_seconds, limits.sound_seconds, limits.decoded_megabytes * 10**6)
    with (
        open_input(path, "a sound file", limits.sound_megabytes) as file,
        decoded("sound", path, file, settings, limits) as decoding,
    ):
        sound, levels = _received(path, decoding, settings.maximum_bytes, spool_directory)
    if sound.duration_seconds < MINIMUM_SECONDS:
        raise InputError(
            f"{path} holds {sound.duration_seconds:.3f} s of sound; at least {MINIMUM_SECONDS} s are needed"
        )
    if levels.peak < FULL_SCALE * 10 ** (SILENCE_PEAK_DBFS / 20):
        raise InputError(f"{path} is silent; give a recording with a voice in it")
    warn_of(path, decoding)
    for note in levels.notes():
        warn(f"{path} {note}")
    return sound


def _received(
    path: Path, decoding: Decoding, maximum_bytes: int, spool_directory: Path | None
) -> tuple[Sound, Levels]:
    """The decoder's samples, and how loud they are."""
    rate_hz, channels = decoding.header.get("rate_hz"), decoding.header.get("channels")
    if not isinstance(rate_hz, int) or rate_hz <= 0 or channels not in (1, 2):
        raise InputError(f"{path} cannot be decoded: its decoder says neither rate nor channels")
    levels = Levels(channels)
    with ArraySpool((channels,), np.int16, _IN_MEMORY_BYTES, spool_directory) as spool:
        rest = b""
        for part in decoding.data(maximum_bytes):
            part = rest + part
            whole = len(part) - len(part) % (2 * channels)
            samples = np.frombuffer(part, np.int16, whole // 2).reshape(-1, channels)
            rest = part[whole:]
            levels.update(samples)
            spool.append(samples)
        return Sound(spool.mapped(), rate_hz), levels


def mono_samples(sound: Sound, sample_rate_hz: int) -> np.ndarray:
    """Average the channels and resample, as `librosa.load(path, sr=sample_rate_hz)` does.

    The resampler is soxr with its HQ recipe; the length is ceil(n * sample_rate_hz / sound.sample_rate_hz).

    Returns:
        float32 (n,), full scale at -1 and 1; resampling may overshoot a little.
    """
    if sound.sample_rate_hz == sample_rate_hz:
        return _mono(sound.samples)
    length = -(-len(sound.samples) * sample_rate_hz // sound.sample_rate_hz)
    resampled = np.zeros(length, np.float32)
    # In parts, which gives the same samples: at its own rate, a long recording would take much memory.
    stream = soxr.ResampleStream(sound.sample_rate_hz, sample_rate_hz, 1, dtype="float32", quality="HQ")
    done = 0
    for start in range(0, len(sound.samples), _RESAMPLED_AT_ONCE):
        last = start + _RESAMPLED_AT_ONCE >= len(sound.samples)
        part = stream.resample_chunk(_mono(sound.samples[start : start + _RESAMPLED_AT_ONCE]), last=last)
        part = part[: length - done]
        resampled[done : done + len(part)] = part
        done += len(part)
    return resampled


def _mono(samples: np.ndarray) -> np.ndarray:
    """The mean of the channels, float32 (n,), full scale at -1 and 1."""
    channels = samples.shape[1]
    mono = samples[:, 0].astype(np.float32)
    for channel in range(1, channels):
        mono += samples[:, channel]
    mono /= FULL_SCALE * channels
    return mono


def log_mel(samples: np.ndarray, mel_filters: np.ndarray, constants: AudioConstants) -> np.ndarray:
    """Whisper's log-mel spectrogram of at most one window, padded with silence to a full one.

    The power spectrum of `fft_samples` under a periodic Hann window, every `hop_samples` (with
    reflect padding at the ends), is multiplied by the mel filters. Its log10, of at least 1e-10, is
    clamped to at most 8 below the window's maximum and scaled to (x + 4) / 4. Source: Radford et al.
    2022 and OpenAI's whisper/audio.py.

    Args:
        samples: float32 (n,), n <= constants.window_samples, at constants.sample_rate_hz.
        mel_filters: float32 (fft_samples // 2 + 1, mel_bins).
        constants: sizes of the window, the transform and the hop.

    Returns:
        float32 (1, mel_bins, window_samples // hop_samples).

    Raises:
        InputError: there are too many samples, or an array has another shape.
    """
    if samples.ndim != 1 or len(samples) > constants.window_samples:
        raise InputError(
            f"a window of sound has shape {samples.shape}; "
            f"it should be (n,) with n up to {constants.window_samples}"
        )
    bins = (constants.fft_samples // 2 + 1, constants.mel_bins)
    if mel_filters.shape != bins:
        raise InputError(f"the mel filters have shape {mel_filters.shape}; it should be {bins}")
    padded = np.pad(samples.astype(np.float32), (0, constants.window_samples - len(samples)))
    padded = np.pad(padded, constants.fft_samples // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, constants.fft_samples)
    frames = frames[:: constants.hop_samples][: constants.window_samples // constants.hop_samples]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(constants.fft_samples) / constants.fft_samples)
    # In double precision: in single precision, a loud bin's rounding error swamps the quiet bins.
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    mel = mel_filters.astype(np.float64).T @ power.T
    logarithm = np.log10(np.maximum(mel, 1e-10))
    logarithm = np.maximum(logarithm, logarithm.max() - 8.0)
    features: np.ndarray = ((logarithm + 4.0) / 4.0).astype(np.float32)[np.newaxis]
    return features
