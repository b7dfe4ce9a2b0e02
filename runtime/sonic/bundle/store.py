"""Finding a bundle by name, and opening it: it has to be complete, and from whom it should be.

A bundle is a directory with ``manifest.json``, the submodels' ONNX files and small assets.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import platformdirs

from sonic.bundle.bundle import Bundle
from sonic.bundle.files import list_files, opened
from sonic.bundle.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileInfo
from sonic.bundle.manifest_file import read_manifest, read_manifest_file
from sonic.bundle.signing import check_signature
from sonic.bundle.trust import DEFAULT_TRUST, TrustOptions, trusted_keys
from sonic.errors import BundleError, warn

PACKAGED_BUNDLES = Path(__file__).parents[1] / "bundles"  # those that the distribution includes


def open_bundle(
    directory: Path, trust: TrustOptions = DEFAULT_TRUST, *, check_digests: bool = True
) -> Bundle:
    """Read a bundle's manifest and check its files against it.

    Every file is opened once, inside the folder, and its size and digest are compared with the manifest's;
    what is loaded later has to be the same file, unchanged.

    Args:
        directory: the bundle.
        trust: what is checked, and who has to have signed it.
        check_digests: compare the files' digests now (about one second per 1 to 2 GB) rather than when they
            are loaded. With `trust.check_digests` off, neither happens.

    Raises:
        BundleError: there is no manifest, or a file is missing, changed, extra, or no regular file; or the
            signature that `trust` asks for is not there.
        InputError: a key cannot be used.
    """
    read = read_manifest_file(directory, check_digest=trust.check_digests)
    manifest = read.manifest
    found = list_files(directory) - {MANIFEST_NAME, SIGNATURE_NAME}
    expected = {file.path for file in manifest.files}
    again = "copy or convert the bundle again"
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing:
        raise BundleError(f"{directory}: the file {missing[0]} is missing; {again}")
    if extra:
        raise BundleError(f"{directory}: the file {extra[0]} is not in the manifest; remove it, or {again}")
    if not trust.check_digests:
        warn(f"{directory}: its files are not compared with their digests, as was asked for")
    bundle = Bundle(directory, manifest, trust.check_digests, manifest_sha256=read.sha256)
    signed = _check_signatures(bundle, trust)
    bundle = replace(bundle, runs_code=trust.trust or signed)
    for file in manifest.files:
        with opened(directory, file.path) as candidate:
            if check_digests or not trust.check_digests:
                bundle.check(file.path, candidate.descriptor)
            else:
                bundle.check_size(file.path, candidate.descriptor)
    return bundle


def _check_signatures(bundle: Bundle, trust: TrustOptions) -> bool:
    """Whether somebody who is trusted signed the bundle.

    Raises:
        BundleError: nobody did, although it was asked for.
    """
    if trust.certificate is not None:
        check_signature(bundle.directory, bundle.digests, certificate=Path(trust.certificate))
        return True
    if trust.key is not None:
        check_signature(bundle.directory, bundle.digests, [Path(trust.key)])
        return True
    keys = trusted_keys() if bundle.manifest.machine_code and trust.check_digests and not trust.trust else []
    if not keys:
        return False
    check_signature(bundle.directory, bundle.digests, keys)
    return True


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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
