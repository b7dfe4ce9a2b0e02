"""Reading small files that may hold anything: regular files only, of bounded size and depth.

    values = read_json(Path("machine.json"), InputError, "write it as docs/guides/estimate.md says")

A file that somebody else wrote may be a pipe that never answers, a device without an end, gigabytes, or JSON
nested so deeply that its reader, or the next one, runs out of stack. Here all of them end in one sentence.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from sonic.errors import SonicError

#: What a JSON file may have, unless its reader says something else: a hundred times what ours have.
JSON_LIMIT_BYTES = 4 << 20
JSON_MAXIMUM_DEPTH = 32


def open_regular(path: str | os.PathLike[str], *, dir_fd: int | None = None, follow: bool = True) -> int:
    """Open a regular file for reading, and return its descriptor; pipes and devices are never waited for.

    Args:
        path: the file.
        dir_fd: a descriptor of the folder that a relative path starts in, rather than the current one.
        follow: whether the last part of the path may be a symbolic link.

    Raises:
        OSError: it cannot be opened, or it is a folder, pipe, socket or device; `strerror` says which.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=dir_fd)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(0, f"it is {_kind_of(mode)}, not a regular file", os.fspath(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_bounded(path: str | os.PathLike[str], limit_bytes: int) -> bytes:
    """Read a whole regular file.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than `limit_bytes`.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(0, f"it is larger than {limit_bytes:,} bytes", os.fspath(path))
    return content


def parse_json(
    text: str | bytes,
    source: str,
    error: type[SonicError],
    advice: str = "",
    *,
    maximum_depth: int = JSON_MAXIMUM_DEPTH,
    allow_surrogates: bool = False,
) -> Any:
    """Parse JSON (RFC 8259) that somebody else wrote.

    Refused beyond what is no JSON: NaN and infinities, numbers that overflow, names that occur twice in an
    object, halves of surrogate pairs, and arrays and objects that are nested deeper than `maximum_depth`.

    Args:
        text: JSON, in UTF-8 if it is bytes.
        source: the file's name, for the error.
        error: the class of the error.
        advice: what the user can do; it ends the message.
        maximum_depth: levels of arrays and objects, the outermost included.
        allow_surrogates: whether halves of surrogate pairs pass, because the caller looks for them.

    Raises:
        SonicError: of the class `error`.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(
            decoded, object_pairs_hook=_without_duplicates, parse_constant=_refuse, parse_float=_finite
        )
        _check_nested(value, maximum_depth, allow_surrogates)
    except RecursionError:
        reason = _too_deep(maximum_depth)
    except UnicodeDecodeError:
        reason = "it is not text in UTF-8"
    except json.JSONDecodeError as failure:
        reason = f"it is not JSON: {failure}"
    except ValueError as failure:  # of the functions below, and integers of thousands of digits
        reason = str(failure)
    else:
        return value
    sentence = f"{source} cannot be read ({reason})"
    raise error(f"{sentence}; {advice}" if advice else sentence)


def read_json(
    path: str | os.PathLike[str],
    error: type[SonicError],
    advice: str = "",
    *,
    limit_bytes: int = JSON_LIMIT_BYTES,
    maximum_depth: int = JSON_MAXIMUM_DEPTH,
) -> Any:
    """Read a JSON file that somebody else wrote; see :func:`parse_json` for the arguments.

    Raises:
        SonicError: of the class `error`; it is missing, no regular file, larger than `limit_bytes`, or not
            acceptable JSON.
    """
    try:
        text = read_bounded(path, limit_bytes)
    except (OSError, ValueError) as failure:  # ValueError: a null byte in the path
        reason = getattr(failure, "strerror", None) or failure
        sentence = f"{Path(path)} cannot be read ({reason})"
        raise error(f"{sentence}; {advice}" if advice else sentence) from failure
    return parse_json(text, str(Path(path)), error, advice, maximum_depth=maximum_depth)


def _kind_of(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the entry {_shown(name)} occurs twice in an object")
        values[name] = value
    return values


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {_shown(digits)} is too large")
    return number


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")


def _too_deep(maximum_depth: int) -> str:
    return f"its arrays and objects are nested deeper than {maximum_depth} levels"


def _check_nested(value: Any, maximum_depth: int, allow_surrogates: bool) -> None:
    level, depth = [value], 0
    while level:
        for text in () if allow_surrogates else _texts(level):
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"{_shown(text)} holds half of a surrogate pair")
        containers = [each for each in level if isinstance(each, dict | list)]
        depth += bool(containers)
        if depth > maximum_depth:
            raise ValueError(_too_deep(maximum_depth))
        level = [
            inner for each in containers for inner in (each.values() if isinstance(each, dict) else each)
        ]


def _texts(level: list[Any]) -> Iterator[str]:
    for each in level:
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            yield from each
