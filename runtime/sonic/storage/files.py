"""Writing a file or a folder whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sonic.errors import OutputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, under which the caller creates a file or a folder.

        with replacing(Path("manifest.json")) as partial:
            partial.write_text(text)

    At the end of the block it replaces `path` by a rename; a folder that stood there goes first, as a
    rename cannot replace one. At any error, and when the process is interrupted or terminated, `path`
    stays as it was and nothing is left beside it. The temporary name ends with the name of `path`, so that
    it has its suffix.

    Raises:
        OutputError: the file or folder cannot be written there.
    """
    partial = path.absolute().with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        yield partial
        if partial.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    except BaseException as error:
        _remove(partial)
        if isinstance(error, OSError):
            raise OutputError(
                f"cannot write {path} ({error.strerror or error}); choose another place"
            ) from error
        raise


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill the file that then replaces `path`; see :func:`replacing`.

    Raises:
        OutputError: the file cannot be written there.
    """
    with replacing(path) as partial:
        write(partial)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, whole or not at all.

    Raises:
        OutputError: the file cannot be written there.
    """
    text = json.dumps(value, indent=1) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()
