"""Checks of files before anything is read or computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sonic.bounded import open_regular
from sonic.errors import InputError


def check_path(path: str | os.PathLike[str]) -> None:
    """Make sure that a text can be the path of a file; on command lines it always can, in files it may not.

    Raises:
        InputError: it holds a null byte, or half of a surrogate pair.
    """
    text = os.fspath(path)
    try:
        usable = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise InputError(
            f"{ascii(text)} cannot be the path of a file: it holds a null byte or half of a surrogate pair"
        )


@contextmanager
def open_input(path: Path, wanted: str, maximum_megabytes: int) -> Iterator[BinaryIO]:
    """Open a regular file for reading, and check what was opened.

    What is checked is what is then read, whatever happens to the path in between.

    Args:
        path: the file; links are followed.
        wanted: what is needed, with its article: "a picture".
        maximum_megabytes: the largest file that is read.

    Raises:
        InputError: it is missing, a folder, not a regular file, empty, too large, or not readable.
    """
    try:
        # Opening a pipe would wait for its other end, and opening a device may do something.
        check_regular_file(path, wanted)
        descriptor = open_regular(path)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); give {wanted}") from error
    with open(descriptor, "rb", buffering=0) as file:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes == 0:
            raise InputError(f"{path} is empty, but {wanted} is needed")
        if size_bytes > maximum_megabytes * 10**6:
            raise InputError(
                f"{path} has {size_bytes / 1e6:.0f} MB; give {wanted} of at most "
                f"{maximum_megabytes} MB, or raise that limit"
            )
        yield file


def check_regular_file(path: Path, wanted: str) -> None:
    """Make sure that a path points to a regular file, of any content.

    Args:
        path: the file.
        wanted: what is needed, with its article: "a picture".

    Raises:
        InputError: it is missing, a folder, not a regular file, or in a folder that may not be entered.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, but {wanted} is needed")
        if not path.exists():
            raise InputError(f"{path} does not exist; give the path of {wanted}")
        if not path.is_file():  # reading a pipe could block forever
            raise InputError(f"{path} is not a regular file, but {wanted} is needed")
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); give {wanted}") from error


def check_not_an_input(output: Path, inputs: Iterable[Path]) -> None:
    """Make sure that an output does not overwrite one of the files it is made from.

    Symbolic and hard links count as the file that they point to.

    Raises:
        InputError: the output is one of the inputs.
    """
    InputFiles(inputs).check(output)


class InputFiles:
    """Files that no output may replace; symbolic and hard links count as the file that they point to.

    A look-up takes the same time however many files there are.

    Args:
        paths: the files, which may not exist; paths that cannot be one are left out.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths: dict[tuple[int, int] | str, Path] = {}
        for path in paths:
            for key in _identities(path):
                self._paths.setdefault(key, path)

    def check(self, output: Path) -> None:
        """Make sure that an output is none of the files.

        Raises:
            InputError: it is one of them.
        """
        for key in _identities(output):
            if key in self._paths:
                raise InputError(
                    f"{output} would replace the input {self._paths[key]}; choose another name for the output"
                )


def _identities(path: Path) -> list[tuple[int, int] | str]:
    try:
        found = os.stat(path)
        return [(found.st_dev, found.st_ino), os.path.realpath(path)]
    except OSError:  # it does not exist
        return [os.path.realpath(path)]
    except ValueError:  # no path at all
        return []
