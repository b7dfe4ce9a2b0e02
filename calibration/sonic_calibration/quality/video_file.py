"""Reads a video file frame by frame."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import av
import numpy as np

from sonic.errors import InputError, SonicError
from sonic.media.audio import load_sound
from sonic.media.checks import check_regular_file
from sonic.media.video import Video
from sonic.sandbox.sounds import TOLERANT
from sonic.storage.spool import ArraySpool

#: A frame that is off its expected time by more than this many frame intervals means an uneven frame rate.
TIMING_TOLERANCE_FRAMES = 0.75
_CONTAINERS = "mov,matroska,avi,mpeg,mpegts"
_FORMATS = "MP4, MOV, MKV, WebM or AVI"


def read_video(path: str | PathLike[str], spool_directory: str | PathLike[str] | None = None) -> Video:
    """Decode the first video stream of a file, and its sound if it has any.

    Frames are converted to RGB by the colour matrix and range that the file declares. They go to a spool
    one by one, so memory does not grow with their number; the sound is kept in memory and is assumed to
    start with the first frame.

    Args:
        path: a video file.
        spool_directory: where the frames of long videos are stored; the system's temporary folder by
            default.

    Returns:
        uint8 (frames, height, width, 3) with the frame rate and the sound.

    Raises:
        InputError: the file is missing, not a regular file or damaged, has no video stream, an uneven frame
            rate or frames of different sizes, or its sound cannot be used (`sonic.media.audio.load_sound`).
        OutputError: the spool cannot be written, for example because the disk is full.
    """
    path = Path(path)
    check_regular_file(path, "a video file")
    try:
        frames, rate_hz, has_sound = _decode(path, spool_directory)
    except SonicError:  # including those of the spool
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, av.ArgumentError):  # a container that is not in the whitelist
            reason = "its format is not supported"
        raise InputError(
            f"{path} cannot be decoded as a video ({reason}); give an undamaged {_FORMATS} file"
        ) from error
    return Video(frames, rate_hz, load_sound(path) if has_sound else None)


def _decode(path: Path, spool_directory: str | PathLike[str] | None) -> tuple[ArraySpool, float, bool]:
    # As in sonic.media.audio: neither a URL nor a playlist may make FFmpeg open other files.
    options = {"format_whitelist": _CONTAINERS}
    with av.open(f"file:{path}", options=options, **TOLERANT) as container:
        if not container.streams.video:
            raise InputError(f"{path} holds no pictures; give a {_FORMATS} file")
        stream = container.streams.video[0]
        rate_hz = float(stream.average_rate or 0)
        if not 0.01 <= rate_hz <= 1000:
            raise InputError(f"{path} does not state a usable frame rate; give a {_FORMATS} file")
        spool: ArraySpool | None = None
        first_seconds = 0.0
        for frame in container.decode(stream):
            if spool is None:
                shape = (frame.height, frame.width, 3)
                directory = None if spool_directory is None else Path(spool_directory)
                spool = ArraySpool(shape, np.uint8, directory=directory)
                first_seconds = frame.time or 0.0
            if (frame.height, frame.width, 3) != shape:
                raise InputError(
                    f"{path} changes from {shape[1]}x{shape[0]} to {frame.width}x{frame.height} pixels "
                    f"at frame {len(spool)}; give a video of one size"
                )
            if frame.time is not None:
                position = (frame.time - first_seconds) * rate_hz
                if abs(position - len(spool)) > TIMING_TOLERANCE_FRAMES:
                    raise InputError(
                        f"{path} shows frame {len(spool)} at {frame.time:.3f} s, but at an even "
                        f"{rate_hz:g} Hz it should be at {first_seconds + len(spool) / rate_hz:.3f} s; "
                        "convert it to a constant frame rate"
                    )
            spool.append(frame.to_ndarray(format="rgb24")[None])
        if spool is None:
            raise InputError(f"{path} holds no picture that can be decoded; give a {_FORMATS} file")
        return spool, rate_hz, bool(container.streams.audio)
