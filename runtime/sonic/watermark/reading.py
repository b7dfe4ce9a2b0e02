"""Reading a watermark from a video's file.

    reading = read_watermark("video.mp4")
    reading.detection                      # None where there is no watermark

A file may come from anyone: how many pixels and frames are decoded is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from sonic.errors import InputError
from sonic.schema import PathLike
from sonic.watermark.detection import FALSE_POSITIVE_RATE, Detection, detect

#: The frames that are read at most: ten minutes at 25 a second.
MOST_FRAMES = 15_000
#: The pixels of the frames that are read at most, all together: ten minutes of 512 x 512.
MOST_PIXELS = MOST_FRAMES * 512 * 512
_LARGEST_SIDE_PIXELS, _LARGEST_PICTURE_PIXELS, _SMALLEST_SIDE_PIXELS = 8192, 4096 * 2304, 32
# Larger pictures are made smaller as they are read; the pattern's cells are in proportion to the picture.
_READ_SHORT_SIDE_PIXELS = 1088
_DECODER_THREADS = 2
# No playlists and other lists of files: what a file names is not opened.
_OPENING = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,ogg"}


@dataclass(frozen=True)
class Reading:
    """What was read from a video.

    Attributes:
        frames: how many frames were read.
        width, height: of the first frame, in pixels.
        detection: the watermark, or None.
    """

    frames: int
    width: int
    height: int
    detection: Detection | None

    def to_json(self) -> dict[str, Any]:
        """As `sonic watermark read --json` prints it."""
        found = self.detection
        values: dict[str, Any] = {"found": found is not None, "frames": self.frames}
        values |= {"width": self.width, "height": self.height, "false_positive_rate": FALSE_POSITIVE_RATE}
        if found is not None:
            values |= found.watermark.to_json()
            values |= {"agreement": round(found.agreement, 4), "deviations": round(found.deviations, 2)}
            values |= {"cells": round(found.cells, 1), "mirrored": found.mirrored}
        return values


def read_watermark(path: PathLike) -> Reading:
    """Read the watermark of a video: of at most its first ten minutes.

    Raises:
        InputError: the file cannot be read, is no video, or its pictures are too large or too small.
    """
    total: NDArray[np.uint32] | None = None
    frames = width = height = 0
    for luma, size in _frames(Path(path)):
        if total is None:
            total, (width, height) = np.zeros(luma.shape, np.uint32), size
        total += luma
        frames += 1
    if total is None:
        raise InputError(f"{path}: the video has no frame that can be decoded")
    return Reading(frames, width, height, detect(total / np.float64(frames)))


def _frames(path: Path) -> Iterator[tuple[NDArray[np.uint8], tuple[int, int]]]:
    """The luma of every frame, all of one size, with width and height of the first."""
    try:
        with av.open(f"file:{path.absolute()}", options=_OPENING) as container:  # a path is no URL
            stream = next((one for one in container.streams.video), None)
            if stream is None:
                raise InputError(f"{path}: there is no video in this file")
            context = stream.codec_context
            if context is None:
                raise InputError(f"{path}: there is no decoder for the video in this file")
            _check_size(path, context.width, context.height)
            context.thread_count = _DECODER_THREADS
            reformatter, pixels = VideoReformatter(), 0
            size, shape = (0, 0), (0, 0)
            for index, frame in enumerate(container.decode(stream)):
                _check_size(path, frame.width, frame.height)
                pixels += frame.width * frame.height
                if index >= MOST_FRAMES or pixels > MOST_PIXELS:
                    return
                if index == 0:
                    size = frame.width, frame.height
                    shrink = min(1.0, _READ_SHORT_SIDE_PIXELS / min(size))
                    shape = round(size[0] * shrink), round(size[1] * shrink)
                gray = reformatter.reformat(frame, shape[0], shape[1], "gray", interpolation="AREA")
                plane = gray.planes[0]
                rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
                yield rows[: shape[1], : shape[0]], size
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: the video cannot be read ({reason})") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width == height == 0:  # known only once a frame is decoded
        return
    short, long = min(width, height), max(width, height)
    if (
        short < _SMALLEST_SIDE_PIXELS
        or long > _LARGEST_SIDE_PIXELS
        or width * height > _LARGEST_PICTURE_PIXELS
    ):
        raise InputError(
            f"{path}: pictures of {width}x{height} pixels should have {_SMALLEST_SIDE_PIXELS} to "
            f"{_LARGEST_SIDE_PIXELS} on each side, and {_LARGEST_PICTURE_PIXELS} at most"
        )
