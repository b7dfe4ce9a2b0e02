"""The images, built once for all tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from image.bases import BASE_CONTAINERFILE, ROOT, download_wheels, find_emulator, unpack_base, unpack_builder
from image.containers import Containers, Images

from sonic.progress import ConsoleProgress
from sonic_convert.testbed.debian_packages import host_architecture
from sonic_convert.testbed.sysroot import default_cache

ASSETS = ROOT / "convert/sonic_convert/assets"
ARCHITECTURES = ("amd64", "arm64")
PIP_CONFIGURATION = "[global]\nno-index = true\nfind-links = /wheels\nroot-user-action = ignore\n"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Both images, built from the sources as they are."""
    cache, progress, folder = default_cache(), ConsoleProgress(), tmp_path_factory.mktemp("images")
    cache.mkdir(parents=True, exist_ok=True)
    native, emulator = host_architecture(), find_emulator(cache, progress)
    store = folder / "store"
    store.mkdir()
    containers = Containers(store, emulator)
    containerfile, pip = folder / "Containerfile", folder / "pip.conf"
    containerfile.write_text(BASE_CONTAINERFILE)
    pip.write_text(PIP_CONFIGURATION)
    try:
        bases = {name: unpack_base(cache, name, progress) for name in ARCHITECTURES}
        for name, architecture, base in (
            ("builder", native, unpack_builder(cache, progress)),
            *((f"base-{name}", name, base) for name, base in bases.items()),
        ):
            containers.build(base, f"localhost/{name}", architecture, f"--file={containerfile}")
        arguments = {}
        for name in ARCHITECTURES:
            wheels = folder / f"wheels-{name}"
            download_wheels(wheels, name)
            arguments[name] = [
                f"--build-arg=BASE=localhost/base-{name}", "--build-arg=BUILDER=localhost/builder",
                f"--build-arg=BUILDPLATFORM=linux/{native}",  # which buildah before 1.30 does not know
                f"--secret=id=pip.conf,src={pip}", f"--volume={wheels}:/wheels:ro",
            ]  # fmt: skip
            containers.build(ROOT, f"localhost/sonic-{name}", name, *arguments[name])
        tags = {name: f"localhost/sonic-{name}" for name in ARCHITECTURES}
        yield Images(containers, tags, arguments, native)
    finally:
        containers.remove()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a portrait and a recording, in which any user may write."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(ASSETS / "portrait.png", folder / "portrait.png")
    shutil.copy(ASSETS / "speech.wav", folder / "speech.wav")
    folder.chmod(0o1777)
    return folder


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles with one for arm64, in INT8, which has the name that generate.py expects."""
    folder = tmp_path_factory.mktemp("bundles")
    examples = folder / "examples"
    examples.mkdir()
    shutil.copy(ASSETS / "portrait.png", examples / "one.png")
    shutil.copy(ASSETS / "speech.wav", examples / "one.wav")
    command = [
        sys.executable, "-m", "sonic_convert", "quantize", "sonic-tiny", str(folder / "bundles/sonic-base"),
        "--isa", "aarch64", "--examples", str(examples), "--calls", "2", "--duration", "0.16", "--steps", "2",
        "--work", str(folder / "work"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bundles"
