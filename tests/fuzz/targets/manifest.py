"""A bundle's manifest."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.bundle.manifest_file import read_manifest
from sonic.errors import SonicError


def one(data: bytes) -> None:
    path = in_file(data, "manifest.json")
    try:
        manifest = read_manifest(path.parent, check_digest=False)  # which would refuse every change
    except SonicError:
        return
    manifest.to_json()
