"""Files and folders that a process owns while it lives, so that what a killed one left can be told from work
going on.

    with OwnedFile(owned_name(path)) as partial:
        ...  # write to partial.path, and rename it
    with OwnedFolder(path) as partial:
        ...  # fill partial.path, and rename it

Such a file or folder is locked (`flock`) by its owner, and the system releases the lock however the owner
ends. One that nobody locks is therefore of a dead process, and :func:`remove_abandoned` removes it. On file
systems without locks, nothing is removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path

# Hidden, and in a form that no other program uses: whatever has such a name is ours.
_OWNED_NAME = re.compile(r"\.sonic-[0-9a-f]{16}(\.\w+)?")
_FOLDER_SUFFIX = ".folder"
# File systems without locks: there, what dead processes had stays. NFS locks no folders (EBADF).
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
# Who looks for abandoned files holds each lock for a moment; that must not look like an owner.
_ATTEMPTS, _SECONDS_BETWEEN_ATTEMPTS = 10, 0.05


def owned_name(path: Path, key: str | None = None) -> Path:
    """A hidden path beside `path`, absolute, with its suffix, for an :class:`OwnedFile`.

    Its name is short, so that a file with the longest name that the file system allows can be replaced too.

    Args:
        path: the file that it belongs to.
        key: 16 hexadecimal digits for a fixed name; by default, the name is unique.
    """
    return path.absolute().with_name(f".sonic-{key or secrets.token_hex(8)}{path.suffix}")


class OwnedFile:
    """A file that this process owns until it closes or renames it; a context manager, which removes it.

    A file that a dead process left under this name is taken over, and emptied.

    Args:
        path: from :func:`owned_name`.

    Attributes:
        path: the same.

    Raises:
        BlockingIOError: another process, or another part of this one, owns it.
        OSError: it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _claim(path)

    def close(self) -> None:
        """Remove the file, unless it was renamed, and give it up."""
        if self._file >= 0:
            if _is_at(self._file, self.path):
                with suppress(OSError):
                    self.path.unlink()
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> OwnedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:  # forgotten: give it up; whoever finds the file removes it
            os.close(self._file)


class OwnedFolder:
    """A new hidden folder beside a path, which this process owns until it closes or renames it.

    A context manager, which removes the folder with all that is in it, unless it was renamed.

    Args:
        beside: what it will become.

    Attributes:
        path: the folder, absolute and empty.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, beside: Path) -> None:
        for _ in range(_ATTEMPTS):
            self.path = owned_name(beside).with_suffix(_FOLDER_SUFFIX)
            self.path.mkdir()
            self._file = os.open(self.path, _FOLDER_FLAGS)
            with suppress(BlockingIOError):
                _lock(self._file)
                if _is_at(self._file, self.path):
                    return
            os.close(self._file)  # taken for abandoned before it was locked
        raise BlockingIOError(errno.EWOULDBLOCK, "another process removes new folders", str(beside))

    def close(self) -> None:
        """Remove the folder, unless it was renamed, and give it up."""
        if self._file >= 0:
            if _is_at(self._file, self.path):
                shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> OwnedFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_abandoned(folder: Path) -> list[Path]:
    """Remove the files and folders that dead processes left in a folder; returns what was removed.

    Only regular files and folders of this user are touched, of the names of :func:`owned_name` and
    :class:`OwnedFolder`, and whose owner is dead. A folder that cannot be read is left alone.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.path for entry in entries if _OWNED_NAME.fullmatch(entry.name)]
    except OSError:
        return []
    return [path for path in map(Path, names) if _remove_if_abandoned(path)]


def _claim(path: Path) -> int:
    """Open and lock a file, created if necessary, and empty it."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
        file = os.open(path, _FLAGS | os.O_CREAT, 0o666)
        try:
            _lock(file)
            if _is_at(file, path):
                os.ftruncate(file, 0)
                return file
        except BlockingIOError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # somebody else's, or just removed as abandoned
    raise BlockingIOError(errno.EWOULDBLOCK, "another process is using it", str(path))


def _lock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _is_at(file: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _remove_if_abandoned(path: Path) -> bool:
    is_folder = path.suffix == _FOLDER_SUFFIX
    try:
        file = os.open(path, _FOLDER_FLAGS if is_folder else _FLAGS | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        found = os.fstat(file)
        is_ours = stat.S_ISDIR(found.st_mode) if is_folder else stat.S_ISREG(found.st_mode)
        if not is_ours or found.st_uid != os.geteuid():
            return False
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(file, path):
            return False
        if is_folder:
            shutil.rmtree(path)
        else:
            path.unlink()
        return True
    except OSError:  # its owner lives, or locks are not known here
        return False
    finally:
        os.close(file)
