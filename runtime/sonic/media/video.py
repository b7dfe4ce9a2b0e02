"""A video of frames and sound, and its MP4 file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import ArrayLike, DTypeLike, NDArray

from sonic.errors import InputError, OutputError
from sonic.media.audio import Sound
from sonic.media.credentials import Credentials
from sonic.storage.files import reason_of, replacing_file
from sonic.storage.owned import OwnedFile, owned_name, remove_abandoned
from sonic.storage.spool import ArraySpool
from sonic.watermark.embedding import Embedder
from sonic.watermark.payload import Watermark

# x264's decisions depend on its number of threads, so that is fixed: otherwise the bytes would depend
# on the machine's number of cores.
_ENCODER_THREADS = 4
# x264's macroblock tree reads uninitialised memory: with it, the same frames gave up to
# 36 different streams in 60 encodings of 192x128 pixels, even on one thread; without it, one.
_ENCODER_OPTIONS = {"x264-params": "mbtree=0"}
# ISO/IEC 14496-3, table 1.18: the sampling frequencies of AAC that players support in practice.
_AAC_SAMPLE_RATES_HZ = (
    8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000,
)  # fmt: skip
_MAXIMUM_SIDE_PIXELS = 16_384  # x264's limit
_BT709 = 1  # the same code for primaries, transfer and matrix in ITU-T H.273, tables 2 to 4
_MPEG_RANGE = 1  # AVCOL_RANGE_MPEG: luma in 16..235


class Video:
    """Frames with their rate and, where there is one, their sound; NumPy sees an array.

    Args:
        frames: uint8 (frames, height, width, 3), RGB; an array or an `ArraySpool`.
        frame_rate_hz: frames per second.
        sound: the sound that starts with the first frame, or None.
        watermark: what :func:`save_video` writes invisibly into the file; the frames here are without it.

    Raises:
        InputError: the frames have another shape or dtype, or the rate is not from 0.01 to 1000.
    """

    def __init__(
        self,
        frames: ArraySpool | NDArray[np.uint8],
        frame_rate_hz: float,
        sound: Sound | None = None,
        watermark: Watermark | None = None,
    ) -> None:
        if not hasattr(frames, "shape") or not hasattr(frames, "dtype"):
            frames = np.asarray(frames)
        shape = tuple(frames.shape)
        if len(shape) != 4 or shape[3] != 3 or frames.dtype != np.uint8:
            raise InputError(
                f"a video's frames should be uint8 of shape (frames, height, width, 3), but are "
                f"{frames.dtype} of shape {shape}"
            )
        if not 0.01 <= frame_rate_hz <= 1000:
            raise InputError(f"a frame rate of {frame_rate_hz} Hz should be 0.01 to 1000")
        self.frames = frames
        self.frame_rate_hz = float(frame_rate_hz)
        self.sound = sound
        self.watermark = watermark

    @property
    def fps(self) -> float:
        """Frames per second; another name for `frame_rate_hz`."""
        return self.frame_rate_hz

    @property
    def duration_seconds(self) -> float:
        """How long all frames are shown, in seconds."""
        return len(self) / self.frame_rate_hz

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(frames, height, width, 3)."""
        frames, height, width, channels = self.frames.shape
        return frames, height, width, channels

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        return self.frames[key]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return iter(self.frames)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.frames, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        frames, height, width, _ = self.shape
        sound = "no sound" if self.sound is None else f"sound at {self.sound.sample_rate_hz} Hz"
        return f"Video({frames} frames, {width}x{height}, {self.frame_rate_hz:g} Hz, {sound})"


@dataclass(frozen=True)
class VideoStream:
    """A video whose frames are computed as they are read; they can be read once, in order.

    Attributes:
        frames: uint8 (height, width, 3), RGB, as many as `shape` says.
        shape: (frames, height, width, 3).
        frame_rate_hz: frames per second.
        sound: the sound that starts with the first frame.
        watermark: as of a :class:`Video`.
    """

    frames: Iterator[NDArray[np.uint8]]
    shape: tuple[int, int, int, int]
    frame_rate_hz: float
    sound: Sound
    watermark: Watermark | None = None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return self.frames


def save_video(
    video: Video | VideoStream | ArraySpool | ArrayLike,
    path: str | os.PathLike[str],
    *,
    frame_rate_hz: float | None = None,
    constant_rate_factor: int = 18,
    sound: Sound | None = None,
    watermark: Watermark | None = None,
    credentials: Credentials | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write an MP4 file: H.264 (yuv420p, BT.709) and, where there is sound, AAC.

    Frames are encoded one by one and the sound along with them, so memory does not grow with the
    length. The file is renamed into place once it is complete; on any error, and on Ctrl-C, nothing
    is written. The same input gives the same bytes with the same version of PyAV.

    Args:
        video: a `Video`, a `VideoStream`, or uint8 frames (frames, height, width, 3).
        path: where to write; it has to end in .mp4, and an existing file is replaced.
        frame_rate_hz: frames per second, for frames that are not a `Video`.
        constant_rate_factor: x264's CRF, 0 (lossless) to 51; a lower one gives better quality and a
            larger file.
        sound: mono or stereo, in place of the video's own; cut or padded with silence to the
            video's length.
        watermark: a mark that is not seen, in place of the video's own; a generated `Video` has one, and
            frames have none.
        credentials: with what to sign the file; its bytes then differ every time.
        progress: called after each frame with the number of frames done and their total.

    Raises:
        InputError: the suffix, the frames, the rate, the CRF or the sound cannot be used.
        OutputError: the file cannot be written there.
    """
    path = Path(path)
    if not isinstance(video, Video | VideoStream):
        if frame_rate_hz is None:
            raise InputError("frames that are not a Video need frame_rate_hz, for example 25")
        video = Video(video, frame_rate_hz)  # type: ignore[arg-type]
    elif frame_rate_hz is not None:
        raise InputError("a Video has its own frame rate; leave out frame_rate_hz")
    sound = video.sound if sound is None else sound
    watermark = video.watermark if watermark is None else watermark
    _check_input(video, path, constant_rate_factor, sound)
    check_output_path(path)
    remove_abandoned(path.absolute().parent)
    # The partial file's path is absolute, so that FFmpeg does not take a name for a URL ("concat:a.mp4").
    with replacing_file(path, "the video") as partial, ExitStack() as stack:
        encoded = partial
        if credentials is not None:
            encoded = stack.enter_context(OwnedFile(owned_name(path))).path
        try:
            _encode(video, encoded, constant_rate_factor, sound, watermark, progress)
        except av.FFmpegError as error:  # not all of them are OSErrors
            raise OutputError(f"{path}: the video cannot be written ({reason_of(error)})") from error
        if credentials is not None:
            credentials.sign(encoded, partial, path.name)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())


def check_output_path(path: str | os.PathLike[str], *, folder_is_writable: bool = False) -> None:
    """Make sure that a video can be written to `path`, before hours are spent on it.

    Args:
        path: of the video.
        folder_is_writable: whether that is known, because of another video in the same folder.

    Raises:
        InputError: the suffix is not .mp4.
        OutputError: the folder does not exist or is not writable, or `path` is not a file.
    """
    path = Path(path)
    _check_suffix(path)
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: this is not a file; choose another name for the video")
    if folder_is_writable:
        return
    try:
        OwnedFile(owned_name(path)).close()
    except (OSError, ValueError) as error:  # ValueError: no path at all
        raise OutputError(f"{path}: the folder should exist and be writable ({reason_of(error)})") from error


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() != ".mp4":
        raise InputError(f"{path}: a video's name should end in .mp4")


def _check_input(
    video: Video | VideoStream, path: Path, constant_rate_factor: int, sound: Sound | None
) -> None:
    _check_suffix(path)
    frames, height, width, _ = video.shape
    if frames == 0:
        raise InputError(f"{path}: a video should have at least one frame")
    if any(side % 2 or not 2 <= side <= _MAXIMUM_SIDE_PIXELS for side in (height, width)):
        raise InputError(
            f"{path}: a frame of {width}x{height} pixels should have an even width and height of "
            f"2 to {_MAXIMUM_SIDE_PIXELS}"
        )
    if not 0 <= constant_rate_factor <= 51:
        raise InputError(f"a constant rate factor of {constant_rate_factor} should be 0 to 51")
    if sound is not None and (
        sound.samples.ndim != 2
        or sound.samples.shape[1] not in (1, 2)
        or sound.samples.dtype != np.int16
        or sound.sample_rate_hz < 1
    ):
        raise InputError(
            f"a video's sound should be int16 samples of shape (n, 1) or (n, 2), but is "
            f"{sound.samples.dtype} of shape {sound.samples.shape} at {sound.sample_rate_hz} Hz"
        )


def _encode(
    video: Video | VideoStream,
    path: Path,
    constant_rate_factor: int,
    sound: Sound | None,
    watermark: Watermark | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    frames, height, width, _ = video.shape
    frame_rate = Fraction(video.frame_rate_hz).limit_denominator(1001)
    # faststart: the index comes first, so that players can start before they have the whole file.
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(
            "libx264", rate=frame_rate, options={"crf": str(constant_rate_factor), **_ENCODER_OPTIONS}
        )
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = 1 / frame_rate
        context.thread_count = _ENCODER_THREADS
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _MPEG_RANGE
        reformatter = VideoReformatter()  # one, as it keeps its tables; a frame's own makes new ones
        embedder = None if watermark is None else Embedder(watermark, height, width)
        track = None if sound is None else _SoundTrack(container, sound, frames / frame_rate)
        for index, pixels in enumerate(video):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture = reformatter.reformat(
                picture, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            if embedder is not None:
                embedder.apply(_luma(picture))
            picture.pts, picture.time_base = index, 1 / frame_rate
            container.mux(stream.encode(picture))
            if track is not None:
                track.encode_until((index + 1) / frame_rate)
            if progress is not None:
                progress(index + 1, frames)
        container.mux(stream.encode(None))
        if track is not None:
            track.finish()


def _luma(picture: av.VideoFrame) -> NDArray[np.uint8]:
    """A picture's first plane, (height, width); writing to it changes the picture."""
    plane = picture.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: picture.height, : picture.width]


class _SoundTrack:
    """The AAC stream of a container, encoded piece by piece."""

    def __init__(self, container: OutputContainer, sound: Sound, duration_seconds: Fraction) -> None:
        self._container = container
        self._sound = sound
        self._channels = sound.samples.shape[1]
        self._layout = "mono" if self._channels == 1 else "stereo"
        self._samples = round(duration_seconds * sound.sample_rate_hz)
        self._position = 0
        # PyAV resamples where AAC does not support the sound's own rate.
        rate_hz = next((rate for rate in _AAC_SAMPLE_RATES_HZ if rate >= sound.sample_rate_hz), 48_000)
        self._stream = container.add_stream("aac", rate=rate_hz, layout=self._layout)
        # 4 bits per sample are below AAC's limit of 6 (6144 bits per frame of 1024 samples) at any rate.
        self._stream.bit_rate = min(128_000, 4 * rate_hz) * self._channels

    def encode_until(self, seconds: Fraction) -> None:
        rate_hz = self._sound.sample_rate_hz
        start, stop = self._position, min(round(seconds * rate_hz), self._samples)
        if stop <= start:
            return
        samples = np.zeros((stop - start, self._channels), np.int16)
        present = self._sound.samples[start:stop]
        samples[: len(present)] = present
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", self._layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
        self._container.mux(self._stream.encode(frame))
        self._position = stop

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
