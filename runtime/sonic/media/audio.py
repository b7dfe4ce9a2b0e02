"""From a sound file to the audio encoder's input.

A recording is decoded with PyAV at its own rate and kept as 16-bit samples: the same samples go
to the finished video and, resampled, to the audio encoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr

from sonic.bundle.constants import AudioConstants
from sonic.errors import InputError
from sonic.media.checks import check_file

MINIMUM_SECONDS = 0.1
SILENCE_PEAK_DBFS = -80.0
RATE_LIMITS_HZ = (4_000, 768_000)
#: A file counts as damaged when more than this fraction of its packets cannot be decoded. A few such
#: packets are normal, for example junk after the last MP3 frame.
DAMAGED_PACKETS_LIMIT = 0.1
#: For `av.open`: do not fail on tags that are not valid text. PyAV 19 and later never do.
TOLERANT: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
_FULL_SCALE = 32_768
_FORMATS = "WAV, MP3, FLAC, M4A or OGG"
_CONTAINERS = "wav,w64,aiff,au,caf,mp3,aac,ac3,amr,flac,ogg,wv,ape,tta,mov,matroska,asf,avi,mpeg,mpegts"


@dataclass(frozen=True, eq=False)
class Sound:
    """A recording in memory.

    Attributes:
        samples: int16 (n, channels), one or two channels.
        sample_rate_hz: samples per second and channel.
    """

    samples: np.ndarray
    sample_rate_hz: int

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate_hz


def load_sound(path: str | PathLike[str], maximum_seconds: float | None = None) -> Sound:
    """Decode the first audio stream of a file at its own sample rate.

    Encoder delays that the file declares (MP3, M4A, Opus) are removed. Mono and stereo stay as they
    are; more channels are mixed down to stereo by FFmpeg. Floating-point sources are clipped to full
    scale.

    Args:
        path: a sound file, or a video file with sound.
        maximum_seconds: decode at most this much, from the beginning.

    Raises:
        InputError: the file is missing, not a regular file, empty or damaged; it has no audio
            stream or an unusable sample rate; it is shorter than 0.1 s or silent (peak below
            -80 dBFS); or `maximum_seconds` is below 0.1 s.
    """
    if maximum_seconds is not None and not MINIMUM_SECONDS <= maximum_seconds < math.inf:
        raise InputError(
            f"the maximum length of the sound is {maximum_seconds} s; "
            f"it should be {MINIMUM_SECONDS} s or more"
        )
    path = Path(path)
    check_file(path, "a sound file")
    try:
        sound = _decode(path, maximum_seconds)
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, av.ArgumentError):  # a container that is not listed, or 9 channels
            reason = "its format is not supported"
        raise InputError(
            f"{path} cannot be decoded as sound ({reason}); give an undamaged {_FORMATS} file"
        ) from error
    if sound.duration_seconds < MINIMUM_SECONDS:
        raise InputError(
            f"{path} holds {sound.duration_seconds:.3f} s of sound; at least {MINIMUM_SECONDS} s are needed"
        )
    peak = max(int(sound.samples.max()), -int(sound.samples.min()))
    if peak < _FULL_SCALE * 10 ** (SILENCE_PEAK_DBFS / 20):
        raise InputError(f"{path} is silent; give a recording with a voice in it")
    return sound


def _decode(path: Path, maximum_seconds: float | None) -> Sound:
    # FFmpeg takes "a:b" for a protocol, and a playlist can name other files: the prefix "file:" and
    # the list of formats restrict it to this one file. Tags in old encodings must not make it fail.
    options = {"format_whitelist": _CONTAINERS}
    with av.open(f"file:{path}", options=options, **TOLERANT) as container:
        if not container.streams.audio:
            raise InputError(f"{path} holds no sound; give a {_FORMATS} file")
        frames = _frames(container, path)
        first = next(frames, None)
        if first is None:
            raise InputError(f"{path} holds no sound that can be decoded; give a {_FORMATS} file")
        rate_hz = first.sample_rate
        if not RATE_LIMITS_HZ[0] <= rate_hz <= RATE_LIMITS_HZ[1]:
            raise InputError(
                f"{path} has a sample rate of {rate_hz} Hz; "
                f"{RATE_LIMITS_HZ[0]} to {RATE_LIMITS_HZ[1]} Hz can be used"
            )
        converter = _Converter(first)
        limit_bytes = math.inf
        if maximum_seconds is not None:
            limit_bytes = round(maximum_seconds * rate_hz) * 2 * converter.channels
        # The samples will be a view of this growing byte array, which saves a second copy.
        samples = bytearray()
        samples += converter.convert(first)
        for frame in frames:
            if len(samples) >= limit_bytes:
                break
            samples += converter.convert(frame)
        else:
            samples += converter.finish()
        if len(samples) > limit_bytes:
            del samples[int(limit_bytes) :]
    return Sound(np.frombuffer(samples, np.int16).reshape(-1, converter.channels), rate_hz)


def _frames(container: av.container.InputContainer, path: Path) -> Iterator[av.AudioFrame]:
    """Yield decoded frames; a few packets that cannot be decoded are skipped, more are an error."""
    packets = damaged = 0
    for packet in container.demux(container.streams.audio[0]):
        packets += 1
        try:
            yield from packet.decode()
        except av.FFmpegError:
            damaged += 1
    if damaged > 1 and damaged > DAMAGED_PACKETS_LIMIT * packets:
        raise InputError(
            f"{path} is damaged: {damaged} of its {packets} packets cannot be decoded; "
            f"give an undamaged {_FORMATS} file"
        )


class _Converter:
    """Converts frames of any format to interleaved 16-bit samples at the first frame's rate."""

    def __init__(self, first: av.AudioFrame) -> None:
        self.channels = min(first.layout.nb_channels, 2)
        self._rate_hz = first.sample_rate
        self._format: tuple[object, ...] = ()
        self._resampler: av.AudioResampler | None = None

    def convert(self, frame: av.AudioFrame) -> bytes:
        done = b""
        frame_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_format != self._format:  # the first frame, or joined streams of two kinds
            done = self.finish()
            layout = "mono" if self.channels == 1 else "stereo"
            self._resampler = av.AudioResampler("s16", layout, self._rate_hz)
            self._format = frame_format
        return done + self._run(frame)

    def finish(self) -> bytes:
        """Return the samples that the resampler still holds."""
        return self._run(None)

    def _run(self, frame: av.AudioFrame | None) -> bytes:
        if self._resampler is None:
            return b""
        parts = self._resampler.resample(frame)
        # Where no conversion is needed, PyAV returns its argument, and that includes the final None.
        return b"".join(part.to_ndarray().tobytes() for part in parts if part is not None)


def mono_samples(sound: Sound, sample_rate_hz: int) -> np.ndarray:
    """Average the channels and resample, as `librosa.load(path, sr=sample_rate_hz)` does.

    The resampler is soxr with its HQ recipe; the length is ceil(n * sample_rate_hz / sound.sample_rate_hz).

    Returns:
        float32 (n,), full scale at -1 and 1; resampling may overshoot a little.
    """
    channels = sound.samples.shape[1]
    mono = sound.samples[:, 0].astype(np.float32)
    for channel in range(1, channels):
        mono += sound.samples[:, channel]
    mono /= _FULL_SCALE * channels
    if sound.sample_rate_hz == sample_rate_hz:
        return mono
    length = -(-len(mono) * sample_rate_hz // sound.sample_rate_hz)
    resampled = soxr.resample(mono, sound.sample_rate_hz, sample_rate_hz, quality="HQ")[:length]
    return np.pad(resampled, (0, length - len(resampled)))


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
