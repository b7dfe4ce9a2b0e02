"""On emulated ARM processors, the runtime with ONNX Runtime gives the same videos as elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sonic
from sonic.options import GenerationOptions
from sonic_calibration.quality.picture import compare_videos
from sonic_convert.checkpoint.checkpoint import EMBEDDED, Checkpoint
from sonic_convert.parity.reference import TorchReference

pytestmark = pytest.mark.aarch64

MINIMUM_PSNR_DB = 45.0
PORTRAIT = EMBEDDED / "portrait.png"
# Short and small: emulation is over a hundred times slower, and the UNet always computes 25 frames.
CLIP = GenerationOptions(duration=0.24, inference_steps=2, min_resolution=128)  # 3 frames
SHORTER_CLIP = GenerationOptions(duration=0.16, inference_steps=1, min_resolution=64)  # 2 frames


@pytest.fixture(scope="session")
def tiny() -> sonic.SonicModel:
    return sonic.load_model("sonic-tiny")


@pytest.fixture(scope="session")
def shorter_clip(tiny: sonic.SonicModel, short_wav: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of intermediate results, computed on this machine."""
    return generate_here(tiny, short_wav, SHORTER_CLIP, tmp_path_factory.mktemp("here"))


def generate_here(tiny: sonic.SonicModel, audio: Path, options: GenerationOptions, folder: Path) -> Path:
    tiny.generate(
        PORTRAIT, audio, duration=options.duration, min_resolution=options.min_resolution,
        inference_steps=options.inference_steps, dump=folder,
    )  # fmt: skip
    return folder


def generate_emulated(
    run_python: Callable[..., str],
    audio: Path,
    options: GenerationOptions,
    folder: Path,
    cpu: str,
    threads: int,
    *more: str,
) -> Path:
    """Run the command line on an emulated processor; returns the folder of its intermediate results."""
    dump, video = folder / "dump", folder / "video.mp4"
    written = run_python(
        "-m", "sonic", "generate", "--bundle", "sonic-tiny", "--image", PORTRAIT, "--audio", audio,
        "--output", video, "--dump", dump, "--duration", options.duration, "--resolution",
        options.min_resolution, "--steps", options.inference_steps, "--threads", threads, *more,
        cpu=cpu,
    )  # fmt: skip
    assert str(video) in written and video.stat().st_size > 1000
    return dump


def difference(dump: Path, expected: Path, name: str) -> float:
    """Relative L2 distance of one result."""
    found, wanted = np.load(dump / f"{name}.npy"), np.load(expected / f"{name}.npy")
    assert found.shape == wanted.shape
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def psnr_db(dump: Path, frames: np.ndarray) -> float:
    return compare_videos(np.load(dump / "frames.npy"), frames).psnr_db


def test_equals_pytorch(
    tiny: sonic.SonicModel, run_python: Callable[..., str], short_wav: Path, tmp_path: Path
) -> None:
    dump = generate_emulated(run_python, short_wav, CLIP, tmp_path, "neoverse-n1", 2)
    reference = TorchReference(Checkpoint.open("sonic-tiny")).generate(PORTRAIT, short_wav, CLIP)
    assert reference.frames.shape == (3, 128, 128, 3)
    assert psnr_db(dump, reference.frames) >= MINIMUM_PSNR_DB
    latents = np.load(dump / "latents.npy")
    assert np.linalg.norm(latents - reference.latents) <= 1e-3 * np.linalg.norm(reference.latents)
    here = generate_here(tiny, short_wav, CLIP, tmp_path / "here")
    assert psnr_db(dump, np.load(here / "frames.npy")) >= MINIMUM_PSNR_DB
    for name in ("audio_tokens", "uncond_tokens", "buckets"):
        assert difference(dump, here, name) <= 1e-5
    assert difference(dump, here, "latents") <= 1e-4


# cortex-a53 has neither dot products nor half precision; more threads than processors must work too.
@pytest.mark.parametrize(("cpu", "threads"), [("neoverse-n1", 1), ("neoverse-n1", 8), ("cortex-a53", 2)])
def test_every_processor_and_number_of_threads_gives_the_same(
    run_python: Callable[..., str],
    short_wav: Path,
    shorter_clip: Path,
    tmp_path: Path,
    cpu: str,
    threads: int,
) -> None:
    dump = generate_emulated(run_python, short_wav, SHORTER_CLIP, tmp_path, cpu, threads)
    assert psnr_db(dump, np.load(shorter_clip / "frames.npy")) >= MINIMUM_PSNR_DB
    assert difference(dump, shorter_clip, "latents") <= 1e-4


def test_products_in_bfloat16(
    run_python: Callable[..., str], short_wav: Path, shorter_clip: Path, tmp_path: Path
) -> None:
    """They run, and are less accurate than float32 but accurate enough."""
    # SVE takes about fifteen times longer to emulate than NEON.
    cpu = "neoverse-v1,sve=off"
    dump = generate_emulated(run_python, short_wav, SHORTER_CLIP, tmp_path, cpu, 2, "--bfloat16")
    assert psnr_db(dump, np.load(shorter_clip / "frames.npy")) >= MINIMUM_PSNR_DB
    assert 1e-4 < difference(dump, shorter_clip, "latents") <= 1e-2
