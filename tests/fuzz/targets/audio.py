"""A recording."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.errors import SonicError
from sonic.media.audio import load_sound
from sonic.options import IntakeLimits

#: Decoded in this process: another one for every input would be a hundred times as slow.
UNCONFINED = IntakeLimits(sandbox=False)


def one(data: bytes) -> None:
    try:
        load_sound(in_file(data, "speech"), maximum_seconds=2, limits=UNCONFINED)
    except SonicError:
        return
