"""Checks of files before anything is read or computed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sonic.errors import InputError


def check_file(path: Path, wanted: str) -> None:
    """Make sure that a path points to a regular file that is not empty.

    Args:
        path: the file.
        wanted: what is needed, with its article: "a picture".

    Raises:
        InputError: it is missing, a folder, not a regular file, empty, or not readable.
    """
    check_regular_file(path, wanted)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty, but {wanted} is needed")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give {wanted}") from error


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
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give {wanted}") from error


def check_not_an_input(output: Path, inputs: Iterable[Path]) -> None:
    """Make sure that an output does not overwrite one of the files it is made from.

    Symbolic and hard links count as the file that they point to.

    Raises:
        InputError: the output is one of the inputs.
    """
    for path in inputs:
        if _same_file(output, path):
            raise InputError(f"{output} would replace the input {path}; choose another name for the output")


def _same_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:  # one of them does not exist
        return os.path.realpath(first) == os.path.realpath(second)
