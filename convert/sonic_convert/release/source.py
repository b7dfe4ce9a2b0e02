"""The source of a release: what is committed, when, and a clean copy of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from sonic.errors import InputError


@dataclass(frozen=True)
class Source:
    """What a release is made of.

    Attributes:
        root: the repository's folder.
        folder: a copy of what is committed, and nothing else.
        commit: in hexadecimal, or "" where that is not known.
        seconds: the commit's time, seconds since 1970, or ``SOURCE_DATE_EPOCH``.
    """

    root: Path
    folder: Path
    commit: str
    seconds: int

    @property
    def version(self) -> str:
        """The packages' version."""
        text = (self.folder / "runtime/sonic/__init__.py").read_text(encoding="utf-8")
        match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
        if match is None:
            raise InputError(f"{self.folder}/runtime/sonic/__init__.py has no __version__")
        return match[1]


def export(root: Path, folder: Path) -> Source:
    """Copy the commit that is checked out.

    Args:
        root: a clone of the repository, in which nothing is changed.
        folder: for the copy; what is there is replaced.

    Raises:
        InputError: `root` is no clone of this repository, or has changes that are not committed.
    """
    if not (root / "runtime/sonic/__init__.py").is_file():
        raise InputError(f"{root} is not sonic-arm's repository; run this in its folder")
    if not (root / ".git").exists():
        raise InputError(f"{root} is no git clone, but a release is made of a commit; clone the repository")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        raise InputError(
            f"{changed[0][3:]} has changes that are not committed; a release is made of a commit: commit them"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar")
    _git(root, "archive", "--format=tar", f"--output={archive.resolve()}", "HEAD")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()
    seconds = os.environ.get("SOURCE_DATE_EPOCH") or _git(root, "log", "-1", "--format=%ct").strip()
    if not (seconds.isascii() and seconds.isdigit()):
        raise InputError(f"SOURCE_DATE_EPOCH is {seconds!r}, but should be seconds since 1970")
    return Source(root, folder, _git(root, "rev-parse", "HEAD").strip(), int(seconds))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise InputError("git is not installed, but a release is made of a commit; install it") from None
    if done.returncode:
        raise InputError(f"git {arguments[0]} fails in {root} ({done.stderr.strip()})")
    return done.stdout
