"""Packs a bundle into one file, the same bytes for the same bundle.

pack(Path("bundles/sonic-base"), Path("sonic-base.tar.zst"))
"""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sonic.archives.members import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    RECORD_BYTES,
    SUFFIX,
    members,
)
from sonic.bounded import JSON_LIMIT_BYTES, read_bounded
from sonic.bundle.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileInfo
from sonic.bundle.store import open_bundle
from sonic.errors import BundleError, InputError, OutputError
from sonic.progress import NoProgress, Progress
from sonic.storage.files import replacing_file

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, ZstdFile
else:
    from backports.zstd import CompressionParameter, ZstdFile

# Weights hardly compress: 9 takes 8 % less space than 3 for sonic-tiny, and is as fast as a disk. One thread,
# since several cut the data elsewhere.
_OPTIONS: dict[int, int] = {CompressionParameter.compression_level: 9, CompressionParameter.checksum_flag: 1}


def pack(bundle: Path, archive: Path, progress: Progress | None = None, seconds: int | None = None) -> None:
    """Pack a bundle; its files are compared with the manifest while they are read.

    The archive depends on the bundle's files, the time in it and the version of Zstandard only.

    Args:
        bundle: the folder.
        archive: the file to write, ``.tar.zst``; replaced when all is done.
        progress: shows the files.
        seconds: the time of all files, since 1970; by default ``SOURCE_DATE_EPOCH``, or 0.

    Raises:
        BundleError: the bundle is incomplete or was changed.
        InputError: the archive's name or ``SOURCE_DATE_EPOCH`` cannot be used.
        OutputError: the archive cannot be written.
    """
    progress = progress or NoProgress()
    if not archive.name.endswith(SUFFIX):
        raise InputError(f"{archive}: the name of an archive should end in {SUFFIX}")
    if bundle.resolve() in archive.resolve().parents:
        raise OutputError(f"{archive} would be inside the bundle that it is made of; choose another place")
    seconds = _source_date() if seconds is None else seconds
    text = _small_file(bundle / MANIFEST_NAME)
    manifest = open_bundle(bundle, check_digests=False).manifest
    files = members(manifest, str(bundle / MANIFEST_NAME))
    with (
        replacing_file(archive, "the archive") as partial,
        progress.stage("pack", len(files)) as advance,
        partial.open("wb") as raw,
        ZstdFile(raw, "wb", options=_OPTIONS) as stream,
    ):
        written = _write(stream, f"{manifest.name}/{MANIFEST_NAME}", len(text), iter((text,)), seconds)
        for name, file in files.items():
            content = _checked(bundle / file.path, file)
            written += _write(stream, name, file.bytes, content, seconds)
            advance()
        if (bundle / SIGNATURE_NAME).exists():
            text = _small_file(bundle / SIGNATURE_NAME)
            written += _write(stream, f"{manifest.name}/{SIGNATURE_NAME}", len(text), iter((text,)), seconds)
        written += 2 * BLOCK_BYTES
        stream.write(bytes(2 * BLOCK_BYTES + -written % RECORD_BYTES))


def _small_file(path: Path) -> bytes:
    try:
        return read_bounded(path, JSON_LIMIT_BYTES)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); copy or convert the bundle again"
        ) from error


def _source_date() -> int:
    value = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not value.isascii() or not value.isdigit() or len(value) > 10:
        raise InputError(f"SOURCE_DATE_EPOCH is {value!r}, but should be seconds since 1970")
    return int(value)


def _write(stream: ZstdFile, name: str, size: int, content: Iterator[bytes], seconds: int) -> int:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, seconds, 0o644
    # The extension of GNU is only used for sizes above 8 GB.
    header = info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")
    stream.write(header)
    for chunk in content:
        stream.write(chunk)
    stream.write(bytes(-size % BLOCK_BYTES))
    return len(header) + size + -size % BLOCK_BYTES


def _checked(path: Path, file: FileInfo) -> Iterator[bytes]:
    """The content of a file, which is compared with the manifest."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as opened:
        for chunk in _chunks(opened):
            size += len(chunk)
            if size > file.bytes:
                break
            digest.update(chunk)
            yield chunk
    if size != file.bytes or digest.hexdigest() != file.sha256:
        raise BundleError(f"{path} was changed since the bundle was made; copy or convert the bundle again")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
