"""Installs a bundle from a release's archive that was copied to this machine.

install(Path("sonic-base-int8-x86_64.tar.zst"))  # then: sonic generate --bundle sonic-base-int8
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path

from sonic.archives.unpack import ArchiveReader
from sonic.bundle.store import user_data_directory
from sonic.errors import BundleError, InputError, OutputError
from sonic.progress import Progress

SUMS_NAME = "SHA256SUMS"
_SUMS_LIMIT_BYTES = 1_000_000
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)


def install(
    archive: Path,
    sums: Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compare an archive with its checksum, and unpack it to the user's bundles.

    Args:
        archive: the file, on this machine.
        sums: its ``SHA256SUMS``, as 'sha256sum' writes it; by default the file of that name beside it.
        name: of the bundle's folder; by default the bundle's.
        overwrite: replace a bundle of this name.
        progress: shows the files.

    Returns:
        The bundle's folder, which is found by its name.

    Raises:
        InputError: the archive or its checksum is missing, or `archive` is an address.
        BundleError: the archive has another checksum, is damaged, or no bundle's.
        OutputError: the folder cannot be written, or something is there.
    """
    if _ADDRESS.match(str(archive)):
        raise InputError(
            f"{archive} is an address, but sonic opens no connections; download the file and {SUMS_NAME}, "
            "and give the file's path"
        )
    if not archive.is_file():
        raise InputError(f"{archive}: there is no such file; it should be an archive of a release")
    expected = _listed(archive.name, sums or archive.with_name(SUMS_NAME))
    with archive.open("rb") as file:
        if not hmac.compare_digest(hashlib.file_digest(file, "sha256").hexdigest(), expected):
            raise BundleError(
                f"{archive} has another checksum than {sums or SUMS_NAME} says; copy or download it again"
            )
        file.seek(0)
        reader = ArchiveReader(file, archive)
        if name is not None and (Path(name).name != name or name.startswith(".")):
            raise InputError(f"the name is {name!r}, but should be that of a folder, without slashes")
        target = install_folder() / (name or reader.manifest.name)
        reader.extract(target, overwrite, progress)
    return target


def install_folder() -> Path:
    """Where bundles are installed: ``$SONIC_HOME``, or the user's data.

    Raises:
        OutputError: the user has no home.
    """
    home = os.environ.get("SONIC_HOME")
    folder = Path(home) if home else user_data_directory()
    if folder is None:
        raise OutputError("this user has no folder for data; set SONIC_HOME to a folder for bundles")
    return folder


def _listed(name: str, sums: Path) -> str:
    try:
        with sums.open("rb") as file:
            text = file.read(_SUMS_LIMIT_BYTES + 1).decode("utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{sums} is missing: it comes with the release and holds the checksum of {name}; copy it here, "
            "or unpack the archive without it by 'sonic bundle unpack'"
        ) from None
    except UnicodeDecodeError:
        text = ""
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is not None and match[2] == name:
            return match[1].lower()
    raise InputError(f"{sums} holds no checksum of {name}; it should be that of the same release")
