"""Reading a video file frame by frame."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import av
import numpy as np

from sonic.errors import InputError, SonicError
from sonic.media.audio import TOLERANT, load_sound
from sonic.media.video import Video
from sonic.storage.spool import ArraySpool

#: A frame further than this share of a frame's time from its place means an uneven frame rate.
PLACE_TOLERANCE = 0.75
_CONTAINERS = "mov,matroska,avi,mpeg,mpegts"
_FORMATS = "MP4, MOV, MKV, WebM or AVI"


def read_video(path: str | PathLike[str], spool_directory: str | PathLike[str] | None = None) -> Video:
    """Decode the first video stream of a file, and its sound where it has any.

    Frames become RGB by the colour matrix and range that the file is labelled with. They go one by
    one to a spool, so memory does not grow with their number; the sound is held whole, and taken to
    start with the first frame.

    Args:
        path: a video file.
        spool_directory: where long videos are kept while they are used; the system's temporary folder
            by default.

    Raises:
        InputError: the file is missing, not a regular file, damaged, without a video stream, of an
            uneven frame rate, of frames that change their size, or with a sound that cannot be used
            (`sonic.media.audio.load_sound`).
        OutputError: the spool's disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, but a video file is needed")
    if not path.exists():
        raise InputError(f"{path} does not exist; give the path of a video file")
    if not path.is_file():  # a pipe would be waited for without end
        raise InputError(f"{path} is not a regular file, but a video file is needed")
    try:
        frames, rate_hz, has_sound = _decode(path, spool_directory)
    except SonicError:  # the spool's too
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, av.ArgumentError):  # a container that is not listed
            reason = "its format is not supported"
        raise InputError(
            f"{path} cannot be decoded as a video ({reason}); give an undamaged {_FORMATS} file"
        ) from error
    return Video(frames, rate_hz, load_sound(path) if has_sound else None)


def _decode(path: Path, spool_directory: str | PathLike[str] | None) -> tuple[ArraySpool, float, bool]:
    # As in sonic.media.audio: neither an address nor a play list may lead to other files.
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
                place = (frame.time - first_seconds) * rate_hz
                if abs(place - len(spool)) > PLACE_TOLERANCE:
                    raise InputError(
                        f"{path} shows frame {len(spool)} at {frame.time:.3f} s, but at an even "
                        f"{rate_hz:g} Hz it should be at {first_seconds + len(spool) / rate_hz:.3f} s; "
                        "convert it to a constant frame rate"
                    )
            spool.append(frame.to_ndarray(format="rgb24")[None])
        if spool is None:
            raise InputError(f"{path} holds no picture that can be decoded; give a {_FORMATS} file")
        return spool, rate_hz, bool(container.streams.audio)
