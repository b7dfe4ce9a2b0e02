"""Finds the compiler that links programs for aarch64."""

from __future__ import annotations

import platform
from pathlib import Path

from sonic.errors import InputError
from sonic.progress import NoProgress
from sonic_convert.testbed.sysroot import default_cache, make_sysroot


def find_compiler(cache: Path | None = None) -> tuple[str, ...]:
    """The command of a C++ compiler for aarch64: on aarch64 this machine's own, otherwise the sysroot's.

    Args:
        cache: the sysroot's folder; the default one if None.

    Raises:
        InputError: there is no sysroot.
    """
    if platform.machine() in ("aarch64", "arm64"):
        return ("g++",)
    folder = cache or default_cache()
    if not (folder / "root").is_dir():
        raise InputError(
            f"there is no sysroot in {folder}, whose compiler links programs for aarch64; make it with "
            "'make sysroot' (sonic-convert sysroot)"
        )
    return make_sysroot(folder, NoProgress()).compiler
