"""Finding a bundle by name and checking that it is complete.

A bundle is a directory with ``manifest.json``, the submodels' ONNX files and small assets.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs

from sonic.bundle.manifest import MANIFEST_NAME, FileInfo, Manifest, read_manifest
from sonic.errors import BundleError

PACKAGED_BUNDLES = Path(__file__).parents[1] / "bundles"  # those that the distribution includes
_HASH_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have been checked."""

    directory: Path
    manifest: Manifest

    def graph_path(self, submodel: str) -> Path:
        """The graph file of a submodel."""
        return self.directory / self.manifest.submodels[submodel].files[0].path

    def asset(self, name: str) -> np.ndarray:
        """A small array in the bundle, such as ``mel_filters``, float32 (frequencies, mel bins).

        Raises:
            BundleError: the bundle has no such asset.
        """
        if name not in self.manifest.assets:
            raise BundleError(f"{self.directory} has no asset '{name}'; convert the checkpoint again")
        array: np.ndarray = np.load(self.directory / self.manifest.assets[name].path, allow_pickle=False)
        return array


def open_bundle(directory: Path, *, check_digests: bool = True) -> Bundle:
    """Read a bundle's manifest and check its files against it.

    Args:
        directory: the bundle.
        check_digests: also compare SHA-256 digests (about one second per 1 to 2 GB).

    Raises:
        BundleError: there is no manifest, or a file is missing, changed or extra.
    """
    manifest = read_manifest(directory)
    expected = {file.path: file for file in manifest.files}
    found = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path.name != MANIFEST_NAME
    }
    again = "copy or convert the bundle again"
    missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
    if missing:
        raise BundleError(f"{directory}: the file {missing[0]} is missing; {again}")
    if extra:
        raise BundleError(f"{directory}: the file {extra[0]} is not in the manifest; remove it, or {again}")
    for file in manifest.files:
        path = directory / file.path
        if path.stat().st_size != file.bytes:
            raise BundleError(
                f"{path} has {path.stat().st_size} bytes, but the manifest says {file.bytes}; {again}"
            )
        if check_digests and sha256_of(path) != file.sha256:
            raise BundleError(f"{path} was changed since the bundle was made; {again}")
    return Bundle(directory, manifest)


def search_path() -> list[Path]:
    """The folders searched for bundles: ``$SONIC_HOME``, ``./bundles``, the user's data, this package's."""
    home, user_data = os.environ.get("SONIC_HOME"), user_data_directory()
    return [
        *([Path(home)] if home else []),
        Path("bundles"),
        *([user_data] if user_data else []),
        PACKAGED_BUNDLES,
    ]


def find_bundle(name: str | os.PathLike[str]) -> Path:
    """Find the directory of a bundle by its path or name.

    Raises:
        BundleError: there is none; the message lists those found and how to make one.
    """
    path = Path(name)
    candidates = [path, *(folder / name for folder in search_path())]
    for candidate in candidates:
        if (candidate / MANIFEST_NAME).is_file():
            return candidate
    if path.is_dir():
        read_manifest(path)  # raises: a folder without a manifest
    found = sorted({str(p.parent) for f in search_path() for p in f.glob(f"*/{MANIFEST_NAME}")})
    listing = f"bundles found: {', '.join(found)}" if found else "no bundle was found"
    places = ", ".join(str(folder) for folder in search_path())
    raise BundleError(
        f"no bundle '{name}' ({listing}; searched {places}); make one with "
        f"'sonic-convert convert CHECKPOINT bundles/{path.name or 'NAME'}'"
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def file_info(path: Path, root: Path) -> FileInfo:
    """Size and digest of a file, its path relative to `root`."""
    return FileInfo(path.relative_to(root).as_posix(), path.stat().st_size, sha256_of(path))


def user_data_directory() -> Path | None:
    """The platform's folder for user data; None for a user without a home, as is common in containers."""
    try:
        path = platformdirs.user_data_path("sonic", appauthor=False)
    except RuntimeError:  # platformdirs 4.6 and later; before, the path kept the "~" it could not expand
        return None
    return path if path.is_absolute() else None
