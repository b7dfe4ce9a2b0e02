"""A portrait."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.errors import SonicError
from sonic.media.portrait import load_portrait
from sonic.options import IntakeLimits

#: Decoded in this process: another one for every input would be a hundred times as slow.
UNCONFINED = IntakeLimits(sandbox=False)


def one(data: bytes) -> None:
    try:
        load_portrait(in_file(data, "portrait"), limits=UNCONFINED)
    except SonicError:
        return
