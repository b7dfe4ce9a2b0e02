"""``manifest.json`` as a file: bounded, and with a digest of itself, so that one changed byte is noticed.

    manifest = read_manifest(Path("bundles/sonic-base"))
    text = manifest_text(manifest.to_json())

The entry "digest", the last one, is the SHA-256 of the file in which it is the empty string:

    sed 's/"digest": "[0-9a-f]*"/"digest": ""/' manifest.json | sha256sum
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonic.bounded import JSON_LIMIT_BYTES, parse_json
from sonic.bundle.files import opened, read_all
from sonic.bundle.manifest import MANIFEST_NAME, Manifest
from sonic.errors import BundleError

_DIGEST = "digest"
_ADVICE = "copy or convert the bundle again"


@dataclass(frozen=True)
class ManifestFile:
    """A manifest that was read, and the SHA-256 of its file in hexadecimal."""

    manifest: Manifest
    sha256: str


def read_manifest(directory: Path, *, check_digest: bool = True) -> Manifest:
    """Read ``manifest.json`` of a bundle directory; see :func:`read_manifest_file`."""
    return read_manifest_file(directory, check_digest=check_digest).manifest


def read_manifest_file(directory: Path, *, check_digest: bool = True) -> ManifestFile:
    """Read ``manifest.json`` of a bundle directory.

    Args:
        directory: the bundle.
        check_digest: compare the file with the digest in it.

    Raises:
        BundleError: it is missing, not JSON, was changed, or does not describe a bundle.
    """
    path = directory / MANIFEST_NAME
    try:
        with opened(directory, MANIFEST_NAME) as file:
            text = read_all(file.descriptor, JSON_LIMIT_BYTES)
    except BundleError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise BundleError(
                f"{directory} holds no {MANIFEST_NAME}, so it is not a bundle; make one with "
                "'sonic-convert convert CHECKPOINT BUNDLE'"
            ) from None
        raise
    if len(text) > JSON_LIMIT_BYTES:
        raise BundleError(
            f"{path} is larger than {JSON_LIMIT_BYTES:,} bytes, so it is no manifest; {_ADVICE}"
        )
    return ManifestFile(parse_manifest(text, str(path), check_digest), hashlib.sha256(text).hexdigest())


def parse_manifest(text: bytes, source: str, check_digest: bool = True) -> Manifest:
    """Parse what ``manifest.json`` holds.

    Args:
        text: the file's content.
        source: its name, for the error.
        check_digest: compare it with the digest in it.

    Raises:
        BundleError: it is not JSON, was changed, or does not describe a bundle.
    """
    values = parse_json(text, source, BundleError, _ADVICE)
    manifest = Manifest.from_json(values, source)
    if check_digest:
        _check_digest(text, values, source)
    return manifest


def manifest_text(values: Mapping[str, Any]) -> str:
    """What ``manifest.json`` holds, with its digest, for the values of :meth:`Manifest.to_json`."""
    rest = {name: value for name, value in values.items() if name != _DIGEST}
    text = json.dumps(rest | {_DIGEST: ""}, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    start, end = text.rsplit(_entry(""), 1)
    return f"{start}{_entry(digest)}{end}"


def _check_digest(text: bytes, values: Mapping[str, Any], source: str) -> None:
    digest = values.get(_DIGEST)
    if digest is None:
        raise BundleError(
            f"{source} has no '{_DIGEST}' of itself, as an earlier version made it; convert the checkpoint "
            "again"
        )
    entry = _entry(str(digest)).encode()
    start, found, end = text.rpartition(entry)
    if not found or hashlib.sha256(start + _entry("").encode() + end).hexdigest() != digest:
        raise BundleError(f"{source} was changed since the bundle was made; {_ADVICE}")


def _entry(digest: str) -> str:
    return f'"{_DIGEST}": "{digest}"'
