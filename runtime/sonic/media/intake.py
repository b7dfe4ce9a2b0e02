"""Reading portraits and recordings that strangers may have made: one way to the decoding process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from sonic.errors import InputError, warn
from sonic.options import IntakeLimits
from sonic.sandbox.process import Budget, Decoding, decode
from sonic.sandbox.protocol import Refusal, readable

_MEGABYTE = 10**6


def first_bytes(file: BinaryIO, count: int) -> bytes:
    """The beginning of an open file, whose position stays as it is."""
    return os.pread(file.fileno(), count, 0)


@contextmanager
def decoded(kind: str, path: Path, file: BinaryIO, settings: Any, limits: IntakeLimits) -> Iterator[Decoding]:
    """Have an open file decoded; a refusal becomes a sentence about the file.

    Args:
        kind: "picture" or "sound".
        path: the file's name, for messages.
        file: open, at its beginning.
        settings: a dataclass with what may be read.
        limits: what decoding may take.

    Raises:
        InputError: the file cannot be used.
        SonicError: it cannot be decoded here.
    """
    budget = Budget(limits.decode_seconds, limits.decode_memory_megabytes * _MEGABYTE, limits.sandbox)
    try:
        with decode(kind, asdict(settings), file, budget) as decoding:
            yield decoding
    except Refusal as refusal:
        raise InputError(f"{path} {refusal}") from refusal


def warn_of(path: Path, decoding: Decoding) -> None:
    """Pass on what the decoder noted about a file that is used all the same."""
    notes = decoding.end.get("notes")
    for note in notes[:10] if isinstance(notes, list) else []:
        warn(f"{path} {readable(str(note))}")
