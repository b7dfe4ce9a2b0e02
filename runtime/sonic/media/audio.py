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
#: More packets than this share that cannot be decoded make a file damaged. A few are normal: junk
#: after the last MP3 frame, for example.
DAMAGED_PACKETS_LIMIT = 0.1
#: For `av.open`: tags that are no valid text are no error. From version 19 on they never are.
TOLERANT: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
_FULL_SCALE = 32_768
_FORMATS = "WAV, MP3, FLAC, M4A or OGG"
_CONTAINERS = "wav,w64,aiff,au,caf,mp3,aac,ac3,amr,flac,ogg,wv,ape,tta,mov,matroska,asf,avi,mpeg,mpegts"


@dataclass(frozen=True, eq=False)
class Sound:
    """A recording in memory.

    Attributes:
        samples: int16 (n, channels), one or two channels.
        sample_rate_hz: samples a second of each channel.
    """

    samples: np.ndarray
    sample_rate_hz: int

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate_hz


def load_sound(path: str | PathLike[str], maximum_seconds: float | None = None) -> Sound:
    """Decode the first audio stream of a file at its own sample rate.

    Encoder delays that the file states (MP3, M4A, Opus) are removed. One channel stays one, two
    stay two, more are mixed to stereo by FFmpeg. Floating-point sources are clipped to full scale.

    Args:
        path: a sound file, or a video file with sound.
        maximum_seconds: read no more than this from the beginning.

    Raises:
        InputError: the file is missing, not a regular file, empty, damaged, without an audio
            stream, of an unusable sample rate, shorter than 0.1 s or silent (peak below -80 dBFS);
            or `maximum_seconds` is below 0.1 s.
    """
    if maximum_seconds is not None and not MINIMUM_SECONDS <= maximum_seconds < math.inf:
        raise InputError(
            f"the limit of the sound's length is {maximum_seconds} s; "
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
    # FFmpeg would read "a:b" as a protocol, and a play list could name other files: "file:" and
    # the list of formats keep it to this one file. Tags in old encodings must not stop it.
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
        # A growing byte array becomes the samples without another copy.
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
    """Decoded frames; packets that cannot be decoded are skipped while they are few."""
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
    """Frames of any format to interleaved 16-bit samples of the first frame's rate."""

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
        """What the resampler still holds."""
        return self._run(None)

    def _run(self, frame: av.AudioFrame | None) -> bytes:
        if self._resampler is None:
            return b""
        parts = self._resampler.resample(frame)
        # Where nothing is to be converted, PyAV hands back the None that means "the end".
        return b"".join(part.to_ndarray().tobytes() for part in parts if part is not None)


def mono_samples(sound: Sound, sample_rate_hz: int) -> np.ndarray:
    """The mean of the channels at another rate, as `librosa.load(path, sr=sample_rate_hz)`.

    Resampled by soxr's HQ recipe; the length is ceil(n * sample_rate_hz / sound.sample_rate_hz).

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
    """Whisper's log-mel spectrogram of up to one window, padded with silence to a whole one.

    Power spectrum of `fft_samples` under a periodic Hann window every `hop_samples` (ends
    mirrored), times the mel filters; log10 of at least 1e-10, at most 8 below the window's
    maximum, then (x + 4) / 4. Source: Radford et al. 2022 and OpenAI's whisper/audio.py.

    Args:
        samples: float32 (n,), n <= constants.window_samples, at constants.sample_rate_hz.
        mel_filters: float32 (fft_samples // 2 + 1, mel_bins).
        constants: sizes of the window, the transform and the hop.

    Returns:
        float32 (1, mel_bins, window_samples // hop_samples).

    Raises:
        InputError: too many samples, or an array of another shape.
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
    # Double precision: beside a loud bin, single precision loses the quiet ones.
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    mel = mel_filters.astype(np.float64).T @ power.T
    logarithm = np.log10(np.maximum(mel, 1e-10))
    logarithm = np.maximum(logarithm, logarithm.max() - 8.0)
    features: np.ndarray = ((logarithm + 4.0) / 4.0).astype(np.float32)[np.newaxis]
    return features
