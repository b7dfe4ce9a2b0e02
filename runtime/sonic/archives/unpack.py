"""Unpacks archives of bundles, which may come from anybody.

    unpack(Path("sonic-base.tar.zst"), Path("bundles/sonic-base"))

Nothing is believed that the manifest, which has to come first, does not say: an archive holds every file of
it once, with its size and digest, a signature perhaps, and nothing else: no links, devices, folders or
extensions of the format.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sonic.archives.members import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    RECORD_BYTES,
    check_name,
    members,
)
from sonic.bounded import JSON_LIMIT_BYTES
from sonic.bundle.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileInfo, Manifest
from sonic.bundle.manifest_file import parse_manifest
from sonic.errors import BundleError, InputError, OutputError
from sonic.progress import NoProgress, Progress
from sonic.storage.claims import claimed
from sonic.storage.files import replacing_folder

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdError, ZstdFile
else:
    from backports.zstd import DecompressionParameter, ZstdError, ZstdFile

# Memory that a frame may ask for, 2 to this power; 'pack' uses 8 MB, 'zstd -19' too.
_OPTIONS: dict[int, int] = {DecompressionParameter.window_log_max: 25}
_MOST_COMPRESSED = 1000  # weights are compressed by 1 to 3


def unpack(
    archive: Path, target: Path, overwrite: bool = False, progress: Progress | None = None
) -> Manifest:
    """Unpack an archive; `target` is there when all of it was compared with the manifest.

    Args:
        archive: of :func:`sonic.archives.pack.pack`.
        target: the folder to make.
        overwrite: replace a bundle that is there.
        progress: shows the files.

    Returns:
        The manifest.

    Raises:
        InputError: there is no such archive.
        BundleError: the archive is damaged, or no bundle's.
        OutputError: the folder cannot be written, or something is there.
    """
    with open_archive(archive) as opened:
        opened.extract(target, overwrite, progress)
        return opened.manifest


@contextmanager
def open_archive(archive: Path) -> Iterator[ArchiveReader]:
    """Open an archive, of which the manifest is read.

    Raises:
        InputError: there is no such archive.
        BundleError: what it begins with is no bundle's manifest.
    """
    if not archive.is_file():
        raise InputError(f"{archive}: there is no such file; it should be an archive of 'sonic bundle pack'")
    with archive.open("rb") as file:
        yield ArchiveReader(file, archive)


class ArchiveReader:
    """An archive, of which the manifest was read and the files were not.

    Args:
        file: opened for reading, at its beginning.
        path: its name, for errors.

    Attributes:
        manifest: what the archive says it holds.

    Raises:
        BundleError: what it begins with is no bundle's manifest.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.path = path
        self._stream = ZstdFile(file, "rb", options=_OPTIONS)
        name, size = self._header() or ("", 0)
        folder, _, rest = name.partition("/")
        if rest != MANIFEST_NAME:
            raise self._damaged(f"it begins with {name!r}, not with a bundle's {MANIFEST_NAME}")
        if size > JSON_LIMIT_BYTES:
            raise self._damaged(f"its manifest has {size} bytes, more than any bundle's")
        self._text = b"".join(self._content(size))
        check_name(folder, str(path))
        self.manifest = parse_manifest(self._text, f"{path}: {name}")
        if self.manifest.name != folder:
            raise self._damaged(f"it holds the folder {folder!r}, but the bundle {self.manifest.name!r}")
        self._files = members(self.manifest, f"{path}: {name}")
        self._total = sum(file.bytes for file in self._files.values())
        packed = path.stat().st_size
        if self._total > _MOST_COMPRESSED * packed:
            raise self._damaged(f"{packed} bytes cannot hold the {self._total} that its manifest lists")

    def extract(self, target: Path, overwrite: bool = False, progress: Progress | None = None) -> None:
        """Unpack the files; `target` is there when all of them were compared with the manifest.

        Raises:
            BundleError: the archive is damaged.
            OutputError: the folder cannot be written, or something is there.
        """
        progress = progress or NoProgress()
        check_free(target, overwrite)
        with claimed(target, "the bundle"):
            free = shutil.disk_usage(target.parent).free
            if free < self._total:
                raise OutputError(
                    f"{target}: the bundle takes {self._total / 1e9:.3g} GB, but {free / 1e9:.3g} GB are "
                    "free; free some space or choose another place"
                )
            with (
                replacing_folder(target, "the bundle") as partial,
                progress.stage("unpack", len(self._files)) as advance,
            ):
                (partial / MANIFEST_NAME).write_bytes(self._text)
                missing = dict(self._files)
                signed = False
                while (header := self._header()) is not None:
                    name, size = header
                    if name == f"{self.manifest.name}/{SIGNATURE_NAME}" and not signed:
                        signed = True
                        if size > JSON_LIMIT_BYTES:
                            raise self._damaged(f"its signature has {size} bytes, more than any")
                        (partial / SIGNATURE_NAME).write_bytes(b"".join(self._content(size)))
                        continue
                    file = missing.pop(name, None)
                    if file is None:
                        again = "twice" if name in self._files else "which is not in its manifest"
                        raise self._damaged(f"it holds {name!r}, {again}")
                    if size != file.bytes:
                        raise self._damaged(f"{name} has {size} bytes, but its manifest says {file.bytes}")
                    self._write(partial / file.path, file)
                    advance()
                if missing:
                    raise self._damaged(f"{next(iter(missing))} is missing")
                self._check_end()

    def _write(self, path: Path, file: FileInfo) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("xb") as opened:
            for chunk in self._content(file.bytes):
                opened.write(chunk)
                digest.update(chunk)
        if digest.hexdigest() != file.sha256:
            raise self._damaged(f"{file.path} has another digest than its manifest says")

    def _header(self) -> tuple[str, int] | None:
        """The name and size of the next member, or None at the end."""
        block = self._read(BLOCK_BYTES)
        if not any(block):
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._damaged(f"it is no tar archive ({error})") from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = _KINDS.get(info.type, "an extension of the format")
            raise self._damaged(f"{info.name!r} is {kind}, not a plain file")
        return info.name, info.size

    def _content(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            chunk = self._read(min(left, CHUNK_BYTES))
            left -= len(chunk)
            yield chunk
        self._read(-size % BLOCK_BYTES)

    def _check_end(self) -> None:
        """One block of zeros was read: others fill the last record, and nothing follows."""
        rest = self._some(RECORD_BYTES + 1)
        if len(rest) < BLOCK_BYTES or len(rest) > RECORD_BYTES or any(rest):
            raise self._damaged("something follows its end")

    def _read(self, size: int) -> bytes:
        data = self._some(size)
        if len(data) < size:
            raise self._damaged("it ends early")
        return data

    def _some(self, size: int) -> bytes:
        data = bytearray()
        try:
            while len(data) < size and (more := self._stream.read(size - len(data))):
                data += more
        except (ZstdError, EOFError) as error:
            raise self._damaged(str(error).rstrip(".")) from error
        return bytes(data)

    def _damaged(self, reason: str) -> BundleError:
        return BundleError(f"{self.path} is not an archive of a bundle, or damaged: {reason}; fetch it again")


_KINDS = {
    tarfile.DIRTYPE: "a folder",
    tarfile.SYMTYPE: "a link",
    tarfile.LNKTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def check_free(target: Path, overwrite: bool) -> None:
    """Check that a bundle may be unpacked to a folder.

    Raises:
        OutputError: something is there.
    """
    if not (target.exists() or target.is_symlink()):
        return
    if (
        target.is_symlink()
        or not target.is_dir()
        or (any(target.iterdir()) and not (target / MANIFEST_NAME).is_file())
    ):
        raise OutputError(f"{target} exists and is no bundle; choose another name, so that nothing is lost")
    if any(target.iterdir()) and not overwrite:
        raise OutputError(f"{target} exists; choose another name, or replace it with --overwrite")
