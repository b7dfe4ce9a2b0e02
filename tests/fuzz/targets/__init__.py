"""The targets of fuzzing; each reads bytes, and catches the errors that bad inputs may end in."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent
#: Stored inputs, in a folder for each target.
CORPUS = FOLDER.parent / "corpus"
TARGETS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def load_target(name: str) -> ModuleType:
    """The module of a target."""
    if name not in TARGETS:
        raise SystemExit(f"no target '{name}'; it should be one of {', '.join(TARGETS)}")
    return importlib.import_module(f"fuzz.targets.{name}")


def in_file(data: bytes, name: str) -> Path:
    """A file of these bytes; the same one for every input, as making one takes longer than reading it."""
    path = _folder() / name
    path.write_bytes(data)
    return path


def _folder() -> Path:
    global _made
    if _made is None:
        import tempfile

        _made = tempfile.TemporaryDirectory(prefix="sonic-fuzz-")
    return Path(_made.name)


_made = None
