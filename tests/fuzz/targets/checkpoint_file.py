"""What a stopped clip goes on with."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.errors import SonicError
from sonic.storage.checkpoint import read_checkpoint


def one(data: bytes) -> None:
    try:
        read_checkpoint(in_file(data, "clip.checkpoint"))
    except SonicError:
        return
