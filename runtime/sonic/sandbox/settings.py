"""What the decoding process is told to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PictureSettings:
    """Which picture may be read.

    Attributes:
        format: the name of its reader, from :func:`sonic.sandbox.picture_formats.picture_format`.
        maximum_pixels: width times height.
        maximum_scans: of a JPEG, each of which is decoded as the whole picture.
    """

    format: str
    maximum_pixels: int
    maximum_scans: int


@dataclass(frozen=True)
class SoundSettings:
    """Which recording may be read.

    Attributes:
        wanted_seconds: decode at most this much, from the beginning; None for all.
        maximum_seconds: refuse to decode more than this.
        maximum_bytes: refuse to decode to more 16-bit samples than this.
    """

    wanted_seconds: float | None
    maximum_seconds: float
    maximum_bytes: int
