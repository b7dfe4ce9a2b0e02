"""Videos that are handed to `sonic watermark read`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from security.hostile import HostileInput


def _reading(make: Callable[[Path], object]) -> Callable[[Path], Sequence[str]]:
    def command(folder: Path) -> Sequence[str]:
        path = folder / "video.mp4"
        make(path)
        return ["sonic", "watermark", "read", str(path)]

    return command


def _write(path: Path, width: int, height: int, codec: str = "mpeg4", frames: int = 1) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            picture = av.VideoFrame(width, height, "yuv420p")
            for plane in picture.planes:
                np.frombuffer(memoryview(plane), np.uint8)[:] = 128
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _cut(path: Path) -> None:
    _write(path, 128, 128, frames=25)
    path.write_bytes(path.read_bytes()[:600])


def _sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret\n#EXT-X-ENDLIST\n")


def _concatenation(path: Path) -> None:
    path.write_text("ffconcat version 1.0\nfile /etc/passwd\n")


ROWS: list[HostileInput] = [
    HostileInput(
        "a video of 8,000 x 8,000 pixels in some kilobytes",
        "video",
        _reading(lambda path: _write(path, 8000, 8000)),
        r"pictures of 8000x8000 pixels should have 32 to 8192 on each side, and \d+ at most",
    ),
    HostileInput(
        "a video whose index was cut off", "video", _reading(_cut), r"video\.mp4: the video cannot be read"
    ),
    HostileInput(
        "a sound file that is named video", "video", _reading(_sound), r"there is no video in this file"
    ),
    HostileInput(
        "a playlist of a web address that is named video",
        "video",
        _reading(_playlist),
        r"video\.mp4: the video cannot be read",
    ),
    HostileInput(
        "a list of other files that is named video",
        "video",
        _reading(_concatenation),
        r"video\.mp4: the video cannot be read",
    ),
    HostileInput(
        "a time of a watermark that is a shell command",
        "option",
        lambda folder: [
            *("sonic", "generate", "--bundle", "sonic-tiny", "--image", "a.png", "--audio", "a.wav"),
            *("--output", str(folder / "a.mp4"), "--watermark-time", "$(reboot)"),
        ],
        r"watermark_time is '\$\(reboot\)', but should be 'now' or a date of 2020 to 2138",
    ),
]
