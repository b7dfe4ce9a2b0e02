"""`sonic-convert reference` runs the whole published pipeline in PyTorch."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import sonic
from sonic.diffusion.conditioning import condition_on_audio
from sonic.media.audio import Sound, mono_samples
from sonic.verification.compare import compare
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.cli.main import main
from sonic_convert.parity.reference import TorchReference


@pytest.fixture
def arguments(small, portrait: Path, short_wav: Path, tmp_path: Path) -> list[str]:
    return ["reference", str(small.checkpoint), f"--image={portrait}", f"--audio={short_wav}",
            f"--output={tmp_path / 'video.mp4'}", "--steps=1", "--resolution=64"]  # fmt: skip


def test_reference_writes_video_and_dump(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [*arguments, f"--dump={tmp_path / 'dump'}"])
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "dump/frames.npy").shape == (8, 128, 64, 3)
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 15


@pytest.mark.parametrize(
    ("option", "expected"),
    [("--noise=missing.npy", "missing.npy"), ("--duration=9", "9 s"), ("--image=missing.png", "missing.png")],
)
def test_bad_input_is_one_sentence(arguments: list[str], option: str, expected: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [*arguments, option])
    assert result.exit_code == 2, (result.output, result.exception)
    assert expected in result.output.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_wrong_noise_is_refused(arguments: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "noise.npy", np.zeros((1, 4, 8, 8), np.float32))
    result = CliRunner().invoke(main, [*arguments, f"--noise={tmp_path / 'noise.npy'}"])
    assert result.exit_code == 2
    assert "float32 (8, 4, 16, 8)" in result.output


def test_speech_beyond_one_window(small, recording: tuple[np.ndarray, int]) -> None:
    """31 s: two windows of the audio encoder, whose states meet in one frame's window."""
    samples, rate = recording
    sound = Sound(np.resize(samples, (31 * rate, 1)), rate)
    model = sonic.load_model(small.bundle)
    width = model.manifest.submodels["image_encoder"].outputs[0].shape[1]
    embedding = np.random.default_rng(0).standard_normal((1, width)).astype(np.float32)
    audio = model.constants.audio
    found = condition_on_audio(
        mono_samples(sound, rate), embedding, model.engine.bundle.asset("mel_filters"), model.engine, audio
    )
    reference = TorchReference(Checkpoint.open(small.checkpoint))
    with torch.inference_mode():
        tokens, silence, buckets = reference._speech(sound, torch.from_numpy(embedding))
    assert len(found.buckets) == len(found.tokens) == 31 * 25 // 2
    assert compare(np.asarray(found.tokens), tokens.numpy()).relative_l2 < 1e-4
    assert compare(found.unconditional_tokens, silence.numpy()).relative_l2 < 1e-4
    assert compare(found.buckets, buckets.numpy()).relative_l2 < 1e-4
