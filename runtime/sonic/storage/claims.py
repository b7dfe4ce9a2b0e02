"""Claims: what one process writes for minutes, such as a bundle, no second one writes at the same time.

    with claimed(Path("bundles/sonic-base"), "the bundle"):
        ...

A claim is a locked hidden file beside the path, which says who holds it. It ends with its process, however
that ends; what was left by dead ones is removed by the next claim in the same folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path

from sonic.errors import OutputError
from sonic.storage.owned import OwnedFile, owned_name, remove_abandoned

# Of this thread or task: what works on a claimed path may call what claims the same path.
_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
_KEY_DIGITS = 16


@contextmanager
def claimed(path: Path, what: str) -> Iterator[None]:
    """Claim a path until the end of the block; its folder is made if necessary.

    Args:
        path: the file or folder that will be written.
        what: a name for it in the error, such as "the bundle".

    Raises:
        OutputError: another process, or another thread of this one, holds it, or nothing can be written
            there.
    """
    path = path.resolve()
    if path in _HELD.get():
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        lock = _lock_path(path)
        claim = OwnedFile(lock)
    except BlockingIOError:
        raise OutputError(
            f"{path}: {what} is being written by {_holder(lock)}; wait until that is done, end it, or choose "
            "another name"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror or error}); choose another place") from error
    with claim:
        holder = {
            "process": os.getpid(),
            "machine": platform.node(),
            "since": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
        }
        with suppress(OSError):  # a full disk: the lock counts, not what it says
            claim.path.write_text(json.dumps(holder), encoding="utf-8")
        token = _HELD.set(_HELD.get() | {path})
        try:
            yield
        finally:
            _HELD.reset(token)


def _lock_path(path: Path) -> Path:
    key = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:_KEY_DIGITS]
    return owned_name(path.with_name("claim.lock"), key)


def _holder(lock: Path) -> str:
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['machine']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # just begun, or just ended
        return "another process"
