"""Looks into a TorchScript archive without opening it with PyTorch."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

from sonic.errors import InputError

_ENTRIES_LIMIT = 20_000
_CODE_LIMIT_BYTES = 16 << 20
_TOTAL_LIMIT_BYTES = 1 << 30
_ADVICE = "it should be the file of Sonic's repository; copy it again"


def check_archive(path: Path) -> None:
    """Check an archive's table of contents and its code's size before PyTorch reads it.

    Code that runs while an archive is loaded (`__setstate__`, of quantized models) is refused as well.

    Raises:
        InputError: it is not a TorchScript archive, or larger unpacked than any face detector.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check(path, archive)
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError) as error:
        raise InputError(
            f"{path}: this is not a TorchScript archive, or not a complete one ({error}); {_ADVICE}"
        ) from error


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    code = [entry for entry in entries if "/code/" in entry.filename]
    if not code:
        raise InputError(
            f"{path}: this is not a TorchScript archive, as it holds no code (saved with torch.save, not "
            f"torch.jit.save?); {_ADVICE}"
        )
    roots = {PurePosixPath(entry.filename).parts[0] for entry in entries}
    if len(roots) != 1 or any(".." in PurePosixPath(entry.filename).parts for entry in entries):
        raise InputError(f"{path}: this archive has entries outside its folder; {_ADVICE}")
    for found, limit, what in (
        (len(entries), _ENTRIES_LIMIT, "files"),
        (sum(entry.file_size for entry in code), _CODE_LIMIT_BYTES, "bytes of code"),
        (sum(entry.file_size for entry in entries), _TOTAL_LIMIT_BYTES, "bytes unpacked"),
    ):
        if found > limit:
            raise InputError(f"{path}: this archive has {found:,} {what}, more than {limit:,}; {_ADVICE}")
    for entry in code:
        if entry.filename.endswith(".py") and b"def __setstate__" in archive.read(entry):
            raise InputError(
                f"{path}: this TorchScript archive runs code while it is loaded ('__setstate__' in "
                f"{entry.filename}); {_ADVICE}"
            )
