"""A portrait."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.errors import SonicError
from sonic.media.portrait import load_portrait


def one(data: bytes) -> None:
    try:
        load_portrait(in_file(data, "portrait"))
    except SonicError:
        return
