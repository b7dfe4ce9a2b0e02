"""A bundle's archive: it is unpacked, and what was unpacked is opened as a bundle."""

from __future__ import annotations

import shutil

from fuzz.targets import in_file

from sonic.archives.unpack import unpack
from sonic.bundle.store import open_bundle
from sonic.errors import SonicError


def one(data: bytes) -> None:
    path = in_file(data, "bundle.tar.zst")
    folder = path.with_name("unpacked")
    try:
        unpack(path, folder)
        open_bundle(folder)
    except SonicError:
        return
    finally:
        shutil.rmtree(folder, ignore_errors=True)
