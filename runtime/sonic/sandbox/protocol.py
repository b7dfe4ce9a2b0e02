"""What the decoding process and its parent say to each other, over one pipe.

A message is a letter, the length of its body in four bytes (big endian), and the body:

    H   a JSON object: what follows (size of the picture; rate and channels of the sound)
    D   pixels or samples
    E   the end with an error: one sentence, without the file's name
    Z   the end: a JSON object

The parent believes none of it: lengths are limited, and a sentence is cut and stripped of control characters
before it is shown.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

HEAD = struct.Struct(">cI")
#: The longest body of a message with data; others are shorter.
DATA_BYTES = 2**20
TEXT_BYTES = 4096
_SENTENCE_CHARACTERS = 400


class Refusal(Exception):
    """What is wrong with an input: the rest of a sentence that starts with the file's name."""


class Messages:
    """Writes messages.

    Args:
        write: takes bytes and returns when all of them are written.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def header(self, **facts: Any) -> None:
        """Say what follows."""
        self._send(b"H", json.dumps(facts).encode())

    def data(self, values: bytes | bytearray | memoryview) -> None:
        """Send pixels or samples, in as many messages as are needed."""
        view = memoryview(values).cast("B")
        for start in range(0, len(view), DATA_BYTES):
            self._send(b"D", bytes(view[start : start + DATA_BYTES]))

    def error(self, sentence: str) -> None:
        """End with an error."""
        self._send(b"E", sentence.encode(errors="replace")[:TEXT_BYTES])

    def end(self, **facts: Any) -> None:
        """End."""
        self._send(b"Z", json.dumps(facts).encode())

    def _send(self, kind: bytes, body: bytes) -> None:
        self._write(HEAD.pack(kind, len(body)) + body)


def readable(text: str) -> str:
    """A text from an untrusted source as one line: no control characters, and not too long.

    Characters that change the direction of writing, and whatever else does not print, become question marks.
    """
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return line if len(line) <= _SENTENCE_CHARACTERS else line[: _SENTENCE_CHARACTERS - 3] + "..."
