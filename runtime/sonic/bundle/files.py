"""The files of a folder that somebody else made: nothing outside it is opened, and only regular files.

    found = list_files(directory)                       # {"unet/model.onnx", ...}; a link in it is an error
    with opened(directory, "unet/model.onnx") as file:
        state = FileState.of(file.descriptor)

Every part of a path is opened relative to the one before it and must not be a symbolic link, so that what is
opened is inside the folder, whoever moves files about meanwhile.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sonic.bounded import open_regular
from sonic.errors import BundleError

#: What version control, downloads and file managers leave in a folder; no submodel reads them.
IGNORED_NAMES = frozenset({".cache", ".git", ".gitattributes", ".gitignore", ".DS_Store"})
_MOST_FILES = 10_000
_CHUNK_BYTES = 1 << 22
_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW
_AGAIN = "copy or convert the bundle again"


@dataclass(frozen=True)
class FileState:
    """What tells whether a file is still the one that was looked at.

    Whoever writes to a file, replaces, renames, links or truncates it changes one of these: the time of the
    last change of the file's entry (ctime) is set by the system only.
    """

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, descriptor: int) -> FileState:
        """The state of an open file."""
        found = os.fstat(descriptor)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True)
class OpenedFile:
    """Descriptors of a regular file, and of the folder that it is in."""

    descriptor: int
    folder: int


@contextmanager
def opened(directory: Path, path: str) -> Iterator[OpenedFile]:
    """Open a regular file in a folder for reading.

    Args:
        directory: the folder; it may be a link.
        path: relative to it, with slashes.

    Raises:
        BundleError: it cannot be opened, is no regular file, or is or leads through a symbolic link.
    """
    *folders, name = PurePosixPath(path).parts
    with ExitStack() as closing:
        try:
            folder = os.open(directory, _FOLDER & ~os.O_NOFOLLOW)
            closing.callback(os.close, folder)
            for part in folders:
                folder = os.open(part, _FOLDER, dir_fd=folder)
                closing.callback(os.close, folder)
            descriptor = open_regular(name, dir_fd=folder, follow=False)
            closing.callback(os.close, descriptor)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise BundleError(f"{directory / path} cannot be opened ({_reason(error)}); {_AGAIN}") from error
        yield OpenedFile(descriptor, folder)


def read_all(descriptor: int, size_bytes: int) -> bytes:
    """Read an open file from its start; returns at most one byte more than `size_bytes`."""
    content = bytearray(size_bytes + 1)
    view, position = memoryview(content), 0
    while position < len(content) and (count := os.preadv(descriptor, [view[position:]], position)):
        position += count
    view.release()
    del content[position:]
    return bytes(content)


def digest_of(descriptor: int) -> str:
    """The SHA-256 of an open file in hexadecimal, read from its start in pieces."""
    digest, position = hashlib.sha256(), 0
    while chunk := os.pread(descriptor, _CHUNK_BYTES, position):
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()


def list_files(directory: Path) -> set[str]:
    """The paths of all files in a folder and below, without `IGNORED_NAMES`; nothing is opened but folders.

    Raises:
        BundleError: it holds a symbolic link, a pipe, a socket or a device, thousands of entries more than
            any bundle, or a folder that cannot be read.
    """
    found: set[str] = set()
    waiting, count = [""], 0
    while waiting:
        parent = waiting.pop()
        try:
            entries = sorted(os.scandir(directory / parent), key=lambda entry: entry.name)
            for entry in entries:
                if entry.name in IGNORED_NAMES:
                    continue
                path = f"{parent}/{entry.name}" if parent else entry.name
                count += 1
                if count > _MOST_FILES:
                    raise BundleError(f"{directory} holds more than {_MOST_FILES:,} files; it is no bundle")
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    waiting.append(path)
                elif stat.S_ISREG(mode):
                    found.add(path)
                else:
                    raise BundleError(f"{directory / path} is {_describe(mode)}")
        except OSError as error:
            raise BundleError(f"{directory / parent} cannot be read ({_reason(error)}); {_AGAIN}") from error
    return found


def _describe(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link, and a bundle is read without following any; copy it with 'cp -rL'"
    return f"no regular file, but a pipe, socket or device; remove it, or {_AGAIN}"


def _reason(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.ELOOP:
        return "it is a symbolic link"
    return getattr(error, "strerror", None) or str(error)
