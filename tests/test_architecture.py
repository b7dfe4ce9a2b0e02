"""Arrows point one way: training -> convert -> calibration -> runtime; and the runtime works alone."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each package may import beside the standard library.
PACKAGES = {
    "runtime/sonic": (
        "sonic annotated_types av backports click compression numpy onnxruntime PIL pi_heif platformdirs "
        "psutil pydantic rich soxr "
        "c2pa cryptography "  # only where content credentials are signed
        "tvm_ffi "  # only where a compiled bundle is opened
        "model_signing"  # only where a bundle is signed, or its signature checked
    ),
    "calibration/sonic_calibration": (
        "sonic_calibration sonic av numpy onnx onnxruntime PIL rich scipy skimage"
    ),
    "convert/sonic_convert": (
        "sonic_convert sonic_calibration sonic av click diffusers numpy onnx onnx_ir onnxruntime onnxscript "
        "onnxsim PIL platformdirs rich safetensors scipy skimage torch transformers tvm tvm_ffi "
        "matplotlib openvino "  # of the extra that 'make bench' installs
        "cyclonedx packageurl packaging"  # of the extra that 'make release' installs
    ),
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert imported(path) <= set(PACKAGES[package].split()), path


def test_arrows_between_rooms_point_one_way() -> None:
    """The order of the rooms, and that modules have no circles, is in pyproject.toml (import-linter)."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def check_environment(environment: Path) -> None:
    """What the wheel brings along takes about 300 MiB, and nothing of it belongs to an extra.

    FFmpeg, ONNX Runtime and NumPy are 230 of them. Bytecode is left out, as by 'pip install --no-compile'.
    """
    (site,) = environment.glob("lib/python*/site-packages")
    for tool in ("pip", "setuptools"):  # part of every environment, and removed here to be left out
        for path in site.glob(f"{tool}*"):
            shutil.rmtree(path)
    used = sum(path.lstat().st_size for path in environment.rglob("*") if path.suffix != ".pyc")
    assert used <= 320e6, f"{used / 1e6:.0f} MB"
    project = tomllib.loads((ROOT / "runtime/pyproject.toml").read_text())["project"]
    extras = {
        re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
        for requirements in project["optional-dependencies"].values()
        for requirement in requirements
    }
    installed = {one.name.lower().replace("_", "-") for one in distributions(path=[str(site)])}
    assert "sonic-runtime" in installed and "numpy" in installed
    assert extras - {"sonic-runtime"} and not (extras - {"sonic-runtime"}) & installed


def test_runtime_alone_generates(small, portrait: Path, short_wav: Path, tmp_path: Path) -> None:
    """The wheel in an empty environment is a working runtime without PyTorch, and knows sonic-tiny."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin/python")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    source = tmp_path / "runtime"
    subprocess.run(["cp", "-r", str(ROOT / "runtime"), str(source)], check=True)
    pip = [python, "-m", "pip", "--quiet"]
    for command in (
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source)],
        [*pip, "install", "--find-links", str(tmp_path), "sonic-runtime"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=clean)
        assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 30_000_000
    check_environment(environment)
    script = f"""
import sys, sonic
video = sonic.load_model({str(small.bundle)!r}).generate(
    {str(portrait)!r}, {str(short_wav)!r}, inference_steps=1, min_resolution=64)
sonic.save_video(video, {str(tmp_path / "video.mp4")!r})
heavy = {{"torch", "onnx", "transformers", "diffusers", "librosa", "cv2", "sonic_convert"}}
print(sorted(heavy & set(sys.modules)), len(video))
import importlib.util
print([name for name in sorted(heavy) if importlib.util.find_spec(name)])
print(sonic.load_model("sonic-tiny").manifest.name)
"""
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=clean)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[] 18", "[]", "sonic-tiny"]
    for command in ("info", "verify"):
        arguments = [str(environment / "bin/sonic"), command, str(small.bundle)]
        done = subprocess.run(arguments, capture_output=True, text=True, env=clean)
        assert done.returncode == 0 and "unet" in done.stdout, done.stdout + done.stderr
