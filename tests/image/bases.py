"""What stands in for the images and the package index that a build takes from the network.

The base images are Debian's packages, unpacked by the test bed; like python:3.13-slim-trixie they have that
release, its C library and that version of Python. Python's packages are wheels in a folder, downloaded with
this machine's pip.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from sonic.progress import Progress
from sonic_convert.testbed.debian_packages import PackageSet, host_architecture, unpack
from sonic_convert.testbed.sysroot import TARGET_SUITE

ROOT = Path(__file__).parents[2]
PYTHON_VERSION = "3.13"  # of Debian trixie
_GLIBC_MINOR = 41
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_BASE = ("base-files", "ca-certificates", "coreutils", "dash", "grep", "libstdc++6", "python3")
_BUILDER = (*_BASE, "findutils", "libc-bin", "python3-pip", "sed")
BASE_CONTAINERFILE = "FROM scratch\nCOPY . /\nENV PATH=/usr/local/bin:/usr/bin:/bin\n"


def unpack_base(cache: Path, architecture: str, progress: Progress) -> Path:
    """The folder of a base image: Debian with Python."""
    return _unpack(
        PackageSet(f"image-base-{architecture}", TARGET_SUITE, architecture, _BASE), cache, progress
    )


def unpack_builder(cache: Path, progress: Progress) -> Path:
    """The folder of the image that builds, for this machine: the same with pip."""
    wanted = PackageSet("image-builder", TARGET_SUITE, host_architecture(), _BUILDER)
    return _unpack(wanted, cache, progress)


def find_emulator(cache: Path, progress: Progress) -> Path | None:
    """A static emulator of aarch64, the same that the test bed uses; None on an aarch64 machine."""
    host = host_architecture()
    if host == "arm64":
        return None
    only = "usr/bin/qemu-aarch64"
    return (
        unpack(PackageSet("emulator", TARGET_SUITE, host, ("qemu-user",), only=only), cache, progress) / only
    )


def download_wheels(folder: Path, architecture: str) -> None:
    """Fill a folder with the wheels of the runtime's dependencies, and those that build its own."""
    with (ROOT / "runtime/pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    machine = _MACHINES[architecture]
    platforms = [
        *(f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC_MINOR, 16, -1)),
        f"manylinux2014_{machine}",
    ]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            f"--dest={folder}", "--only-binary=:all:", "--implementation=cp",
            f"--python-version={PYTHON_VERSION}", *(f"--platform={platform}" for platform in platforms),
            *project["project"]["dependencies"], *project["build-system"]["requires"],
        ],
        check=True,
    )  # fmt: skip


def _unpack(wanted: PackageSet, cache: Path, progress: Progress) -> Path:
    """Unpacked packages, and what their scripts would have made of them."""
    folder = unpack(wanted, cache, progress)
    for name in ("dev", "etc/ssl/certs", "proc", "run", "sys", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    certificates = sorted((folder / "usr/share/ca-certificates").rglob("*.crt"))
    joined = b"".join(path.read_bytes() for path in certificates)
    (folder / "etc/ssl/certs/ca-certificates.crt").write_bytes(joined)
    return folder
