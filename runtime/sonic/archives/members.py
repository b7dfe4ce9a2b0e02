"""What an archive of a bundle holds: a folder of the bundle's name, with the manifest first.

An archive is a tar of plain files, compressed with Zstandard. Everything in it follows from the manifest:
which files, their sizes and their digests.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from sonic.bundle.manifest import MANIFEST_NAME, FileInfo, Manifest
from sonic.errors import BundleError

SUFFIX = ".tar.zst"
BLOCK_BYTES = 512  # of tar
RECORD_BYTES = 20 * BLOCK_BYTES  # what an archive's length is a multiple of
CHUNK_BYTES = 1 << 20
_NAME_LIMIT = 99  # longer ones would need extensions of the format
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def check_name(name: str, source: str) -> None:
    """Check that a bundle's name can be that of a folder anywhere.

    Raises:
        BundleError: it cannot.
    """
    if not _PART.fullmatch(name) or len(name) > _NAME_LIMIT // 2:
        raise BundleError(
            f"{source}: the bundle's name is {name!r}, but should be at most {_NAME_LIMIT // 2} letters, "
            "digits, dots, dashes and underscores"
        )


def members(manifest: Manifest, source: str) -> dict[str, FileInfo]:
    """The files of a bundle by their names in its archive, sorted; the manifest itself is not among them.

    Args:
        manifest: of the bundle.
        source: the file's name, for the error.

    Raises:
        BundleError: names that not every file system can hold beside each other, or other than plain ones.
    """
    check_name(manifest.name, source)
    files: dict[str, FileInfo] = {}
    spellings = {MANIFEST_NAME: MANIFEST_NAME}
    for file in sorted(manifest.files, key=lambda file: file.path):
        parts = PurePosixPath(file.path).parts
        plain = "/".join(parts) == file.path and all(map(_PART.fullmatch, parts))
        name = f"{manifest.name}/{file.path}"
        if not plain or len(name) > _NAME_LIMIT or file.path == MANIFEST_NAME or file.bytes < 0:
            raise BundleError(f"{source} lists {file.path!r} of {file.bytes} bytes, which no bundle has")
        if files.setdefault(name, file) != file:
            raise BundleError(f"{source} lists {file.path} twice, with different digests")
        for above in ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1)):
            if spellings.setdefault(above.casefold(), above) != above:
                raise BundleError(
                    f"{source} lists {above} and {spellings[above.casefold()]}, which some systems take for "
                    "one name"
                )
    for name in files:
        if any(str(above) in files for above in PurePosixPath(name).parents):
            raise BundleError(f"{source} lists {name} as a file inside a file")
    return files
