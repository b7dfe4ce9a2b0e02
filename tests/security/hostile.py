"""One row of the table of hostile inputs, which `test_hostile_inputs.py` runs and docs/security.md shows.

The rows are in modules by what they attack: `hostile_bundles.ROWS`, `hostile_media.ROWS` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostileInput:
    """An input that an attacker could hand in, and the sentence that should be all it achieves.

    Attributes:
        name: what it is, as the documentation's table says it: "a PNG of 30,000 x 30,000 pixels in 1 MB".
        kind: "picture", "sound", "bundle", "checkpoint", "jobs", "video", "output" or "option".
        command: makes the files in the empty folder it is given and returns the arguments of
            ``python -m``, the first of which is "sonic" or "sonic_convert".
        sentence: a regular expression for the error's sentence.
    """

    name: str
    kind: str
    command: Callable[[Path], Sequence[str]]
    sentence: str
