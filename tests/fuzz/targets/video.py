"""A video whose watermark is read."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.errors import SonicError
from sonic.watermark.reading import read_watermark


def one(data: bytes) -> None:
    try:
        read_watermark(in_file(data, "video.mp4"))
    except SonicError:
        return
