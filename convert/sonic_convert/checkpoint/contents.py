"""A first look at a checkpoint's files: what is no weights file at all, or only the beginning of one.

Reads a few kilobytes of each file, so that gigabytes are judged in a moment, before any work.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from sonic.bounded import open_regular, parse_json
from sonic.errors import InputError

_HEAD_BYTES = 1024
_HEADER_LENGTH_BYTES = 8  # of a safetensors file
_HEADER_LIMIT_BYTES = 100 << 20  # safetensors' own limit
_ZIP_START = b"PK\x03\x04"
_ENTRIES_LIMIT = 200_000
_PICKLE_LIMIT_BYTES = 64 << 20
_AGAIN = "it should be downloaded again"


def check_file(path: Path) -> None:
    """Check that a file is what its name says, and whole as far as its table of contents tells.

    Raises:
        InputError: it is a pointer of Git LFS, a web page, empty, cut off, or no regular file.
    """
    try:
        with open(open_regular(path), "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise InputError(f"{path}: this file cannot be read ({error.strerror or error})") from error
    if not head:
        raise InputError(f"{path}: this file is empty; {_AGAIN}")
    if head.startswith(b"version https://git-lfs.github.com/"):
        raise InputError(
            f"{path}: this is a pointer of Git LFS, not the file itself; fetch the files with 'git lfs pull' "
            "in the repository that was cloned (after 'git lfs install'), or download it"
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(
            f"{path}: this is a web page, saved in place of the file (one with a download link, or with an "
            f"error); {_AGAIN}, from the link to the file itself"
        )
    if path.suffix == ".safetensors":
        _check_safetensors(path, head)
    elif path.suffix != ".json" and head.startswith(_ZIP_START):
        _check_zip(path)


def _check_safetensors(path: Path, head: bytes) -> None:
    size = path.stat().st_size
    length = int.from_bytes(head[:_HEADER_LENGTH_BYTES], "little")
    if size < _HEADER_LENGTH_BYTES or length > _HEADER_LIMIT_BYTES or head[8:9] not in (b"{", b""):
        raise InputError(f"{path}: this is not a safetensors file; {_AGAIN}")
    start = _HEADER_LENGTH_BYTES + length
    if start > size:
        raise InputError(
            f"{path}: this file is cut off, in its header ({size:,} of {start:,} bytes); {_AGAIN}"
        )
    with open(path, "rb") as file:
        file.seek(_HEADER_LENGTH_BYTES)
        header = parse_json(file.read(length), str(path), InputError, _AGAIN)
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = start + max(ends, default=0)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path}: the header of this safetensors file is damaged; {_AGAIN}") from error
    if whole != size:
        what = "is cut off" if size < whole else "has more than its tensors"
        raise InputError(f"{path}: this file {what} ({size:,} of {whole:,} bytes); {_AGAIN}")


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise InputError(
            f"{path}: this file is cut off or damaged, as the table of contents at its end cannot be read "
            f"({error}); {_AGAIN}"
        ) from error
    if any("/code/" in entry.filename for entry in entries):
        return  # TorchScript, which is looked at by itself
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    pickles = sum(entry.file_size for entry in entries if entry.filename.endswith("data.pkl"))
    if packed or pickles > _PICKLE_LIMIT_BYTES or len(entries) > _ENTRIES_LIMIT:
        raise InputError(
            f"{path}: this is not an archive as PyTorch writes them ({len(entries):,} entries, "
            f"{len(packed):,} of them compressed); it should be saved with torch.save"
        )
