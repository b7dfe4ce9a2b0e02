"""Builds the wheels and source archives of both packages."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from sonic.errors import InputError, OutputError
from sonic_convert.release.source import Source

NEEDED = ("build", "hatchling", "cyclonedx")


def check_tools() -> None:
    """Check that what builds a release is installed.

    Raises:
        InputError: it is not.
    """
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"a release needs '{name}'; pip install 'sonic-convert[release]'")


def build_packages(source: Source, target: Path) -> list[Path]:
    """Build a wheel and a source archive of each package; that of sonic-convert is the whole repository.

    They are built with the hatchling that is installed, and dated by the commit.

    Args:
        source: the commit.
        target: an existing folder for them.

    Returns:
        The files, sorted.

    Raises:
        OutputError: the build fails.
    """
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(source.seconds)}
    environment.pop("PYTHONPATH", None)
    for project in (source.folder / "runtime", source.folder):
        command = [
            sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel",
            "--outdir", str(target.resolve()), str(project.resolve()),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=target)
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise OutputError(f"{project} cannot be built ({''.join(last)})")
    return sorted(target.iterdir())
