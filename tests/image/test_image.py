"""The images of both architectures; that of arm64 runs under emulation."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from image.bases import ROOT
from image.containers import Images

import sonic

pytestmark = pytest.mark.image

ANYONE = "12345:12345"
MAXIMUM_MEGABYTES = 500  # with Debian and Python, about 110 MB
LOOK_AROUND = """
import importlib.util, json, os, shutil, sys
names = "cc c++ gcc g++ clang ld as make cmake rustc go nvcc".split()
modules = ["torch", "onnx", "tvm", "sonic_convert", "sonic_calibration", "sonic_training", "hatchling"]
print(json.dumps({
    "programs": [name for name in names if shutil.which(name)],
    "modules": [name for name in modules if importlib.util.find_spec(name)],
    "app": sorted(os.listdir("/app")),
    "user": [os.getuid(), os.getgid()],
    "newest": max(os.lstat(os.path.join(folder, name)).st_mtime
                  for folder, _, files in os.walk("/opt/sonic") for name in files),
    "foreign_bytecode": [name for folder, _, files in os.walk("/opt/sonic/sonic") for name in files
                         if name.endswith(".pyc") and f"cpython-3{sys.version_info.minor}" not in name],
}))
"""


@pytest.fixture(params=["amd64", "arm64"])
def architecture(request: pytest.FixtureRequest, images: Images) -> str:
    name: str = request.param
    if name == "amd64" and images.native != "amd64":
        pytest.skip("only aarch64 is emulated")
    return name


def test_dockerfile_is_linted() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_says_what_it_is(images: Images, architecture: str) -> None:
    found = images.containers.configuration(images.tags[architecture])
    assert found["Architecture"] == architecture
    assert found["Labels"]["org.opencontainers.image.version"] == sonic.__version__
    assert found["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    user, group = map(int, found["User"].split(":"))  # numbers, so that Kubernetes can compare them
    assert user > 0 and group > 0


def test_size(images: Images, architecture: str, capsys: pytest.CaptureFixture[str]) -> None:
    megabytes = images.containers.size_megabytes(images.tags[architecture])
    with capsys.disabled():
        print(f"\n{architecture}: {megabytes:.0f} MB")
    assert megabytes < MAXIMUM_MEGABYTES


def test_holds_only_what_servers_need(images: Images, architecture: str) -> None:
    done = images.containers.run(images.tags[architecture], architecture, "python3", "-c", LOOK_AROUND)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["programs"] == [] and found["modules"] == [] and found["foreign_bytecode"] == []
    assert found["app"] == ["__pycache__", "data", "generate.py"]
    assert found["user"] == [65532, 65532]
    assert found["newest"] == 0


def test_names_its_licence_and_packages(images: Images) -> None:
    folder = "/usr/share/doc/sonic-arm"
    command = ["cat", f"{folder}/LICENSE", f"{folder}/requirements.txt"]
    done = images.containers.run(images.tags[images.native], images.native, *command)
    assert done.stdout.startswith((ROOT / "LICENSE").read_text())
    assert "\nonnxruntime==" in done.stdout


def test_same_sources_give_the_same_layers(images: Images) -> None:
    first = images.containers.layers(images.tags["arm64"])
    images.containers.build(ROOT, "localhost/again", "arm64", *images.arguments["arm64"])
    assert images.containers.layers("localhost/again") == first


def test_health_check(images: Images, architecture: str, tmp_path: Path) -> None:
    """It passes, and fails where a file of the packaged bundle is missing."""
    tag = images.tags[architecture]
    kind, *command = images.containers.configuration(tag)["Healthcheck"]["Test"]
    assert kind == "CMD"
    done = images.containers.run(tag, architecture, *command, user=ANYONE)
    assert done.returncode == 0, done.stderr
    if architecture == images.native:
        tmp_path.chmod(0o755)
        damaged = f"{tmp_path}:/opt/sonic/sonic/bundles/sonic-tiny/unet:ro"
        done = images.containers.run(tag, architecture, *command, volumes=[damaged])
        assert done.returncode == 2 and "unet" in done.stderr


def test_bundle_for_arm64_is_verified(images: Images, bundles: Path) -> None:
    """Every submodel and a clip, compared with PyTorch's stored results in the image."""
    done = images.containers.run(
        images.tags["arm64"], "arm64", "sonic", "verify", "sonic-base", volumes=[f"{bundles}:/bundles:ro"]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout


def test_generates(images: Images, architecture: str, bundles: Path, data: Path) -> None:
    """The command of the guide, with any user, a read-only root and no network."""
    done = images.containers.run(
        images.tags[architecture], architecture,
        "python3", "generate.py", "--image=data/portrait.png", "--audio=data/speech.wav", "--duration=0.16",
        "--resolution=64", "--steps=1", "--output=data/output.mp4",
        volumes=[f"{bundles}:/bundles:ro", f"{data}:/app/data"], user=ANYONE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    video = data / "output.mp4"
    assert video.stat().st_size > 1000 and video.stat().st_uid == 12345
    assert sorted(path.name for path in data.iterdir()) == ["output.mp4", "portrait.png", "speech.wav"]


def test_stops_cleanly(images: Images, data: Path) -> None:
    """SIGTERM, which engines send to a container's first process, ends a clip with one sentence."""
    command = images.containers.run_command(
        images.tags[images.native], images.native,
        "sonic", "generate", "--bundle", "sonic-tiny", "--image=data/portrait.png", "--audio=data/speech.wav",
        "--output=data/output.mp4", volumes=[f"{data}:/app/data"],
    )  # fmt: skip
    process = images.containers.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stderr is not None
        first = process.stderr.readline()  # it has begun
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 143, first + errors
    assert "no output was written" in errors
    assert not (data / "output.mp4").exists()
