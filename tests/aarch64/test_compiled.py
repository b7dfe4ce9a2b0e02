"""Bundles compiled with TVM and the Arm Compute Library, on emulated ARM processors."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import sonic
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.store import find_bundle
from sonic.options import GenerationOptions
from sonic_calibration.quality.picture import compare_videos
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.recording.examples import BUILT_IN, read_examples
from sonic_calibration.recording.recordings import RecordingOptions
from sonic_convert.bundle_writer import write_manifest
from sonic_convert.compilation.compile import CompileOptions, compile_bundle
from sonic_convert.compilation.sizes import Picture
from sonic_convert.compilation.targets import find_target
from sonic_convert.quantization.plan import preset
from sonic_convert.quantization.qdq import QdqOptions
from sonic_convert.quantization.quantize import QuantizationOptions, calibrate_bundle, quantize_bundle
from sonic_convert.testbed.sysroot import Sysroot, emulated

pytestmark = pytest.mark.aarch64

ROOT = Path(__file__).parents[2]
PORTRAIT = ROOT / "convert/sonic_convert/assets/portrait.png"
RUN_SECONDS = 1800
SMALL = Picture(64, 64)
PROCESSORS = CompileOptions(find_target("generic-armv8"), (Picture(128, 128), SMALL))
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def sonic_command(sysroot: Sysroot) -> Run:
    """Runs the ``sonic`` command on an emulated processor."""

    def run(*arguments: str | Path | float, cpu: str = "neoverse-n1") -> subprocess.CompletedProcess[str]:
        command = emulated(
            sysroot, [sysroot.python, "-m", "sonic", *map(str, arguments)], cpu,
            environment={"PYTHONPATH": str(ROOT / "runtime")},
        )  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS)

    return run


@pytest.fixture(scope="session")
def compiled(sysroot: Sysroot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sonic-tiny in float32, compiled for any ARMv8 processor."""
    bundle = tmp_path_factory.mktemp("compiled") / "fp32"
    compile_bundle(find_bundle("sonic-tiny"), bundle, PROCESSORS, sysroot.compiler)
    return bundle


@dataclass(frozen=True)
class Int8:
    """Bundles quantized with the same calibration: for x86, for aarch64, and the latter compiled."""

    x86: Path
    aarch64: Path
    compiled: Path


@pytest.fixture(scope="session")
def int8(sysroot: Sysroot, tmp_path_factory: pytest.TempPathFactory) -> Int8:
    folder, source = tmp_path_factory.mktemp("int8"), find_bundle("sonic-tiny")
    plan = preset("int8")
    recording = RecordingOptions(calls=2, clip=GenerationOptions(duration=0.16, inference_steps=2))
    calibration: Calibration
    calibration, _ = calibrate_bundle(
        source, read_examples(BUILT_IN)[:1], recording, folder / "calibration.npz", plan.quantized, folder
    )
    for isa in ("x86", "aarch64"):
        options = QuantizationOptions(plan, QdqOptions(isa=isa))
        quantize_bundle(source, folder / isa, options, calibration)
    processors = replace(PROCESSORS, pictures=())  # only one picture size, as int8 takes longer to compile
    compile_bundle(folder / "aarch64", folder / "compiled", processors, sysroot.compiler)
    return Int8(folder / "x86", folder / "aarch64", folder / "compiled")


def generate(
    sonic_command: Run, bundle: Path, audio: Path, folder: Path, *more: str | Path | float, **run: str
) -> Path:
    """Generate a clip of two frames; returns the folder of its intermediate results."""
    dump = folder / "dump"
    done = sonic_command(
        "generate", "--trust", "--bundle", bundle, "--image", PORTRAIT, "--audio", audio, "--dump", dump,
        "--output", folder / "video.mp4", "--duration", 0.16, *more, **run,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dump


def verify(sonic_command: Run, bundle: Path, report: Path) -> dict[str, dict[str, float]]:
    done = sonic_command("verify", bundle, "--trust", "--json", report)
    assert done.returncode == 0, done.stdout + done.stderr
    values: dict[str, dict[str, float]] = json.loads(report.read_text())
    return values


def test_float32_equals_pytorch(sonic_command: Run, compiled: Path, tmp_path: Path) -> None:
    """`sonic verify` compares every submodel and a clip with PyTorch's."""
    report = verify(sonic_command, compiled, tmp_path / "report.json")
    assert report["clip"]["psnr_db"] >= 45


def test_int8_is_verified(sonic_command: Run, int8: Int8, tmp_path: Path) -> None:
    verify(sonic_command, int8.compiled, tmp_path / "report.json")


def test_int8_equals_that_of_x86(sonic_command: Run, int8: Int8, short_wav: Path, tmp_path: Path) -> None:
    """Up to rounding, both engines on aarch64 give the same video as ONNX Runtime on this machine."""
    here = tmp_path / "here"
    sonic.load_model(int8.x86).generate(PORTRAIT, short_wav, duration=0.16, inference_steps=1, dump=here)
    for bundle in (int8.aarch64, int8.compiled):
        folder = tmp_path / bundle.name
        folder.mkdir()
        dump = generate(sonic_command, bundle, short_wav, folder, "--steps", 1)
        found, wanted = np.load(dump / "frames.npy"), np.load(here / "frames.npy")
        assert compare_videos(found, wanted).psnr_db >= 40, bundle.name


def test_processors_and_threads_give_the_same(
    sonic_command: Run, compiled: Path, short_wav: Path, tmp_path: Path
) -> None:
    """Results are bitwise equal for any number of threads, and close on another processor or by branch."""
    latents = {}
    for cpu, threads in (("neoverse-n1", 1), ("neoverse-n1", 2), ("neoverse-n1", 8), ("cortex-a53", 2)):
        folder = tmp_path / f"{cpu}-{threads}"
        folder.mkdir()
        options = ["--steps", 1, "--resolution", 64, "--threads", threads]
        dump = generate(sonic_command, compiled, short_wav, folder, *options, cpu=cpu)
        latents[cpu, threads] = np.load(dump / "latents.npy")
    first = latents["neoverse-n1", 1]
    assert (latents["neoverse-n1", 2] == first).all() and (latents["neoverse-n1", 8] == first).all()
    other = latents["cortex-a53", 2]
    assert np.linalg.norm(other - first) <= 1e-4 * np.linalg.norm(first)
    branches = {}
    for memory in ("low", "fast"):  # one after the other, and in parallel threads
        folder = tmp_path / memory
        folder.mkdir()
        options = ["--steps", 1, "--resolution", 64, "--memory", memory]
        branches[memory] = np.load(
            generate(sonic_command, compiled, short_wav, folder, *options) / "latents.npy"
        )
    np.testing.assert_array_equal(branches["low"], branches["fast"])
    assert np.linalg.norm(branches["low"] - first) <= 1e-5 * np.linalg.norm(first)


def test_a_changed_weight_is_detected(sonic_command: Run, compiled: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "changed"
    shutil.copytree(compiled, bundle)
    weights = bundle / "unet/000/weights.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    done = sonic_command("verify", bundle)
    assert done.returncode == 2
    assert "weights.bin was changed since the bundle was made" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_processor_without_a_feature_is_refused(sonic_command: Run, compiled: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "kunpeng"
    shutil.copytree(compiled, bundle)
    target = find_target("kunpeng920")
    manifest = read_manifest(bundle)
    write_manifest(bundle, replace(manifest, target={**manifest.target, "features": list(target.features)}))
    done = sonic_command("verify", bundle, "--trust", cpu="cortex-a53")
    assert done.returncode == 2
    assert "needs asimddp, asimdhp; this CPU has" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_size_that_was_not_compiled_is_refused(
    sonic_command: Run, compiled: Path, short_wav: Path, tmp_path: Path
) -> None:
    done = sonic_command(
        "generate", "--trust", "--bundle", compiled, "--image", PORTRAIT, "--audio", short_wav, "--output",
        tmp_path / "video.mp4", "--duration", 0.16, "--steps", 1, "--resolution", 192,
    )  # fmt: skip
    assert done.returncode == 2
    assert "was compiled for inputs of the shapes" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "video.mp4").exists()
