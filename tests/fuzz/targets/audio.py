"""A recording."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.errors import SonicError
from sonic.media.audio import load_sound


def one(data: bytes) -> None:
    try:
        load_sound(in_file(data, "speech"), maximum_seconds=2)
    except SonicError:
        return
