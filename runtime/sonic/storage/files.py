"""Writing a file or a folder atomically: completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sonic.errors import OutputError
from sonic.storage.owned import OwnedFile, OwnedFolder, owned_name


@contextmanager
def replacing(path: Path, what: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`, at which the caller creates a file or a folder.

        with replacing(Path("manifest.json")) as partial:
            partial.write_text(text)

    At the end of the block it is renamed to `path`; an existing folder is removed first, as a rename
    cannot replace one. On any error, and when the process is interrupted or terminated, `path` stays
    as it was and nothing is left beside it. The temporary name has the suffix of `path`.

    Args:
        path: the file or folder to replace.
        what: a name for it in the error, such as "the video".

    Raises:
        OutputError: the file or folder cannot be written there.
    """
    with _in_a_sentence(path, what), whole_or_nothing(path) as partial:
        yield partial


@contextmanager
def replacing_file(path: Path, what: str = "") -> Iterator[Path]:
    """As :func:`replacing`, for large files: the temporary file is there from the start, empty.

    If the process is killed, :func:`sonic.storage.owned.remove_abandoned` can tell that nobody needs the
    temporary file any more.

    Args:
        path: the file to replace.
        what: a name for it in the error, such as "the video".

    Raises:
        OutputError: the file cannot be written there.
    """
    with _in_a_sentence(path, what), OwnedFile(owned_name(path)) as partial:
        yield partial.path
        os.replace(partial.path, path)


@contextmanager
def replacing_folder(path: Path, what: str = "") -> Iterator[Path]:
    """As :func:`replacing`, for large folders: the temporary folder is there from the start, empty.

    If the process is killed, :func:`sonic.storage.owned.remove_abandoned` can tell that nobody needs the
    temporary folder any more.

    Args:
        path: the folder to replace.
        what: a name for it in the error, such as "the bundle".

    Raises:
        OutputError: the folder cannot be written there.
    """
    with _in_a_sentence(path, what):
        path.parent.mkdir(parents=True, exist_ok=True)
        with OwnedFolder(path) as partial:
            yield partial.path
            if not path.is_dir() or path.is_symlink():
                os.replace(partial.path, path)
                return
            old = owned_name(path).with_suffix(".folder")
            os.replace(path, old)  # removing it takes seconds, during which neither would be there
            try:
                os.replace(partial.path, path)
            except BaseException:
                os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _in_a_sentence(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if what:
            sentence = f"{path}: {what} cannot be written ({reason_of(error)})"
        else:
            sentence = f"cannot write {path} ({error.strerror or error}); choose another place"
        raise OutputError(sentence) from error


@contextmanager
def whole_or_nothing(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """As :func:`replacing`, but errors of the system pass: for parts of a result that has a name of its own.

    Args:
        path: the file or folder to replace.
        partial: a fixed temporary name, where only one process writes: what a killed one left there is
            removed.

    Raises:
        OSError: the file or folder cannot be written there.
    """
    if partial is None:
        partial = partial_name(path)
    else:
        _remove(partial)
    try:
        yield partial
        if partial.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    except BaseException:
        _remove(partial)
        raise


def partial_name(path: Path) -> Path:
    """A unique hidden path beside `path`, absolute, with its suffix.

    Its name is short, so that a file with the longest name that the file system allows can be replaced too.
    """
    return path.absolute().with_name(f".{secrets.token_hex(8)}{path.suffix}")


def reason_of(error: Exception) -> str:
    """Why something could not be written, in words."""
    if getattr(error, "errno", None) == errno.ENOSPC:
        return "the disk is full"
    return getattr(error, "strerror", None) or str(error)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` create the file that then replaces `path`; see :func:`replacing`.

    Raises:
        OutputError: the file cannot be written there.
    """
    with replacing(path) as partial:
        write(partial)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, completely or not at all.

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
