"""A small release, built twice from nothing: the same bytes, and everything in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from sonic.archives.install import install
from sonic.bundle.store import open_bundle, sha256_of
from sonic_convert.synth.synthesize import synthesize

pytestmark = pytest.mark.release
ROOT = Path(__file__).parents[3]
ASSETS = ROOT / "convert/sonic_convert/assets"
QUICK = ("--calls", "1", "--duration", "0.5", "--steps", "2", "--gigabytes", "0.1")


def release(clone: Path, checkpoint: Path, *options: str) -> Path:
    """Make a release in a clone, with the code that is tested."""
    command = [
        sys.executable, "-m", "sonic_convert", "release", str(checkpoint), str(clone / "dist"),
        "--name", "small", "--repository", str(clone), "--work", str(clone / "build"), *QUICK, *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return clone / "dist"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second of two releases, which are compared here."""
    folder = tmp_path_factory.mktemp("release")
    checkpoint = synthesize(folder / "checkpoint", "small", 0)
    for name in ("first", "second"):
        subprocess.run(["git", "clone", "--quiet", f"file://{ROOT}", str(folder / name)], check=True)
    examples = folder / "examples"  # the face detector of random checkpoints finds no face in some portraits
    examples.mkdir()
    for asset in ("portrait.png", "speech.wav"):
        shutil.copy(ASSETS / asset, examples / f"one{Path(asset).suffix}")
    first = release(folder / "first", checkpoint, "--examples", str(examples))
    # A checkpoint that nobody measured: the second one quotes the first.
    measured = str(first / "measured-memory.json")
    second = release(folder / "second", checkpoint, "--examples", str(examples), "--measured", measured)
    assert (first / "SHA256SUMS").read_text() == (second / "SHA256SUMS").read_text()
    return second


def test_everything_is_there_and_has_its_checksum(dist: Path) -> None:
    sums = dict(reversed(line.split("  ")) for line in (dist / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {path.name for path in dist.iterdir()} - {"SHA256SUMS"}
    assert all(sha256_of(dist / name) == digest for name, digest in sums.items())
    bundles = {f"small-{p}-{m}.tar.zst" for p in ("fp32", "fp16", "int8") for m in ("x86_64", "aarch64")}
    documents = {"RELEASE_NOTES.md", "THIRD_PARTY_LICENSES.txt", "sonic-arm.cdx.json", "measured-memory.json"}
    packages = {name for name in sums if name.startswith("sonic_") and name.endswith((".whl", ".tar.gz"))}
    assert set(sums) == bundles | documents | packages and len(packages) == 4
    assert sums["small-fp32-x86_64.tar.zst"] == sums["small-fp32-aarch64.tar.zst"]
    assert sums["small-int8-x86_64.tar.zst"] != sums["small-int8-aarch64.tar.zst"]
    models = {one["name"] for one in json.loads((dist / "sonic-arm.cdx.json").read_text())["components"]}
    assert bundles <= models


def test_the_packages_hold_what_they_should(dist: Path) -> None:
    (runtime,) = dist.glob("sonic_runtime-*.whl")
    with zipfile.ZipFile(runtime) as wheel:
        names = wheel.namelist()
    assert "sonic/bundles/sonic-tiny/manifest.json" in names and not [n for n in names if "convert" in n]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    (source,) = dist.glob("sonic_convert-*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    missing = set(tracked.stdout.splitlines()) - inside
    assert not missing, sorted(missing)[:10]
    assert inside - set(tracked.stdout.splitlines()) == {"PKG-INFO"}


def test_a_bundle_of_it_is_installed(dist: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SONIC_HOME", str(tmp_path))
    folder = install(dist / "small-int8-aarch64.tar.zst")
    manifest = open_bundle(folder).manifest
    assert folder.name == manifest.name == "small-int8"
    assert manifest.quantization["options"]["isa"] == "aarch64"
    assert "notice" in manifest.assets
