"""Decoding a recording to 16-bit samples; runs in the confined process.

FFmpeg reads the open file through a Python object, so that none of its protocols is involved, and only with
the readers and decoders that are listed here.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np

from sonic.sandbox.protocol import Messages, Refusal
from sonic.sandbox.settings import SoundSettings

#: FFmpeg's names of the containers that are read: WAV, AIFF, CAF, MP3, AAC, FLAC, OGG, M4A/MP4/MOV, WebM/MKV,
#: AVI.
CONTAINERS = ("wav", "w64", "aiff", "caf", "mp3", "aac", "flac", "ogg", "mov", "matroska", "avi")
#: FFmpeg's names of the decoders that are used.
CODECS = (
    "mp3float", "mp3", "aac", "alac", "flac", "vorbis", "opus",
    "pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be",
    "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw",
)  # fmt: skip
ACCEPTED_TEXT = "WAV, MP3, FLAC, M4A or OGG"
RATE_LIMITS_HZ = (4_000, 768_000)
#: A file counts as damaged when more than this fraction of its packets cannot be decoded. A few such
#: packets are normal, for example junk after the last MP3 frame.
DAMAGED_PACKETS_LIMIT = 0.1
#: For `av.open`: do not fail on tags that are not valid text. PyAV 19 and later never do.
TOLERANT: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
# Containers that state how long the sound is; from others FFmpeg guesses it.
_STATES_LENGTH = ("wav", "w64", "aiff", "caf", "flac", "mov", "matroska")
# A sound counts as truncated if this much of the stated length is missing.
_MISSING_FRACTION, _MISSING_SECONDS = 0.02, 0.1
# Floats beyond 65,536 overflow in FFmpeg's conversion to integers, and mixing adds up several of them.
_LARGEST_FLOAT = 1024.0


def prepare(_settings: SoundSettings) -> None:
    """Load what decoding needs, by decoding: nothing can be loaded once the process is confined."""
    samples = np.full(RATE_LIMITS_HZ[0], 0.5, np.float32).tobytes()
    header = struct.pack(
        "<4sI8sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVEfmt ", 16, 3, 1, RATE_LIMITS_HZ[0],
        4 * RATE_LIMITS_HZ[0], 4, 32, b"data", len(samples),
    )  # fmt: skip
    _decode(io.BytesIO(header + samples), SoundSettings(None, 2, 10**6), Messages(lambda _: None))


def decode(file: BinaryIO, settings: SoundSettings, messages: Messages) -> None:
    """Send the rate and the number of channels, and the samples, int16 (n, channels).

    Raises:
        Refusal: it cannot be decoded, is damaged, or longer than allowed.
    """
    try:
        _decode(file, settings, messages)
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, MemoryError):
            raise MemoryError from error
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, av.ArgumentError):  # a container that is not listed, or 9 channels
            reason = "its format is not supported"
        raise Refusal(
            f"cannot be decoded as sound ({reason}); give an undamaged {ACCEPTED_TEXT} file"
        ) from error


def _decode(file: BinaryIO, settings: SoundSettings, messages: Messages) -> None:
    options = {
        "format_whitelist": ",".join(CONTAINERS),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "none",
    }
    wav_excess = _wav_excess(file)
    with av.open(file, options=options, **TOLERANT) as container:
        stream = _first_sound(container)
        stated = _stated_seconds(container, stream)
        wanted = settings.wanted_seconds
        needed = math.inf if wanted is None else wanted
        if stated is not None and min(stated, needed) > settings.maximum_seconds:
            raise Refusal(_too_long(settings, f"lasts {stated:.0f} s"))
        frames = _frames(container, stream)
        first = next(frames, None)
        if first is None:
            raise Refusal(f"holds no sound that can be decoded; give a {ACCEPTED_TEXT} file")
        rate_hz = first.sample_rate
        if not RATE_LIMITS_HZ[0] <= rate_hz <= RATE_LIMITS_HZ[1]:
            raise Refusal(
                f"has a sample rate of {rate_hz} Hz; "
                f"{RATE_LIMITS_HZ[0]} to {RATE_LIMITS_HZ[1]} Hz can be used"
            )
        converter = Converter(first)
        frame_bytes = 2 * converter.channels
        if stated is not None and min(stated, needed) * rate_hz * frame_bytes > settings.maximum_bytes:
            raise Refusal(_too_large(settings))
        messages.header(rate_hz=rate_hz, channels=converter.channels)
        output = _Output(settings, messages, rate_hz, frame_bytes)
        output.send(converter.convert(first))
        for frame in frames:
            if output.complete:
                break
            output.send(converter.convert(frame))
        else:
            output.send(converter.finish())
        notes = []
        seconds = output.sent_bytes / frame_bytes / rate_hz
        if wav_excess is not None:
            stated = seconds * wav_excess
        if stated is not None and not output.complete:
            missing = stated - seconds
            if missing > _MISSING_SECONDS and missing > _MISSING_FRACTION * stated:
                notes.append(
                    f"is truncated: it should last {stated:.2f} s, but only {seconds:.2f} s are there"
                )
        messages.end(notes=notes)


class _Output:
    """Sends samples until as many are sent as are wanted; refuses more than are allowed."""

    def __init__(self, settings: SoundSettings, messages: Messages, rate_hz: int, frame_bytes: int) -> None:
        self._settings, self._messages = settings, messages
        wanted = settings.wanted_seconds
        self._wanted_bytes = math.inf if wanted is None else round(wanted * rate_hz) * frame_bytes
        self._longest_bytes = settings.maximum_seconds * rate_hz * frame_bytes
        self.sent_bytes = 0

    @property
    def complete(self) -> bool:
        """Whether all that is wanted was sent."""
        return self.sent_bytes >= self._wanted_bytes

    def send(self, samples: bytes) -> None:
        rest = self._wanted_bytes - self.sent_bytes
        if len(samples) > rest:
            samples = samples[: int(rest)]
        self.sent_bytes += len(samples)
        if self.sent_bytes > self._longest_bytes:
            raise Refusal(_too_long(self._settings, f"lasts more than {self._settings.maximum_seconds:g} s"))
        if self.sent_bytes > self._settings.maximum_bytes:
            raise Refusal(_too_large(self._settings))
        self._messages.data(samples)


def _too_long(settings: SoundSettings, fact: str) -> str:
    return (
        f"{fact}; give at most {settings.maximum_seconds:g} s, "
        "use a part of it (duration), or raise the limit sound-seconds"
    )


def _too_large(settings: SoundSettings) -> str:
    return (
        f"decodes to more than {settings.maximum_bytes / 1e6:g} MB of samples; give a lower sample rate, "
        "use a part of it (duration), or raise the limit decoded-megabytes"
    )


def _first_sound(container: av.container.InputContainer) -> av.AudioStream:
    if not container.streams.audio:
        raise Refusal(f"holds no sound; give a {ACCEPTED_TEXT} file")
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None or context.codec.name not in CODECS:
        name = "an unknown codec" if context is None else f"the codec {context.codec.name}"
        raise Refusal(f"is encoded with {name}, which is not read; give a {ACCEPTED_TEXT} file")
    return stream


def _stated_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> float | None:
    """How long the sound should be; None where the container does not say."""
    if container.format.name.split(",")[0] not in _STATES_LENGTH:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _wav_excess(file: BinaryIO) -> float | None:
    """How many times the data that are there a WAV says it has; None if it is whole, or no WAV.

    FFmpeg corrects the length by the size of the file, and does not tell.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start, excess = file.read(12), None
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        position = len(start)
        while len(head := file.read(8)) == 8:
            length, position = int.from_bytes(head[4:], "little"), position + 8
            if head[:4] == b"data":
                # Programs that write to a pipe do not know the length, and state the largest one.
                if position < size < position + length < 0x7FFFF000:
                    excess = length / (size - position)
                break
            position += length + length % 2
            file.seek(position)
    file.seek(0)
    return excess


def _frames(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    """Yield decoded frames; a few packets that cannot be decoded are skipped, more are an error."""
    packets = damaged = 0
    for packet in container.demux(stream):
        packets += 1
        try:
            yield from packet.decode()
        except av.error.MemoryError:
            raise
        except av.FFmpegError:
            damaged += 1
    if damaged > 1 and damaged > DAMAGED_PACKETS_LIMIT * packets:
        raise Refusal(
            f"is damaged: {damaged} of its {packets} packets cannot be decoded; "
            f"give an undamaged {ACCEPTED_TEXT} file"
        )


class Converter:
    """Converts frames of any format to interleaved 16-bit samples at the first frame's rate."""

    def __init__(self, first: av.AudioFrame) -> None:
        self.channels = min(first.layout.nb_channels, 2)
        self._rate_hz = first.sample_rate
        self._format: tuple[object, ...] = ()
        self._resampler: av.AudioResampler | None = None

    def convert(self, frame: av.AudioFrame) -> bytes:
        """The samples that are ready after one more frame.

        Raises:
            Refusal: a sample is not a number.
        """
        done = b""
        frame_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_format != self._format:  # the first frame, or joined streams of two kinds
            done = self.finish()
            layout = "mono" if self.channels == 1 else "stereo"
            self._resampler = av.AudioResampler("s16", layout, self._rate_hz)
            self._format = frame_format
        if frame.format.name[:3] in ("flt", "dbl"):
            frame = _within_range(frame)
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


def _within_range(frame: av.AudioFrame) -> av.AudioFrame:
    """The same frame, with infinities and huge floats cut to what can be converted, which clips them."""
    values: Any = frame.to_ndarray()
    largest = np.abs(values).max(initial=0)
    if np.isnan(largest):
        raise Refusal("holds samples that are not numbers (NaN); export the sound again")
    if largest <= _LARGEST_FLOAT:
        return frame
    values = np.clip(values, -_LARGEST_FLOAT, _LARGEST_FLOAT)
    cut = av.AudioFrame.from_ndarray(values, frame.format.name, frame.layout.name)
    cut.sample_rate, cut.pts, cut.time_base = frame.sample_rate, frame.pts, frame.time_base
    return cut
