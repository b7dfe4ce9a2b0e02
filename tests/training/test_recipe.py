"""The whole recipe with a few steps and clips: its checkpoint is complete, and it resumes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_training.denoiser import DenoiserOptions
from sonic_training.recipe import Recipe, make_checkpoint
from sonic_training.trainer import TrainingOptions

pytestmark = pytest.mark.skipif(
    not (shutil.which("espeak-ng") and shutil.which("flite")),
    reason="speech is synthesized by espeak-ng and flite (apt-get install espeak-ng flite)",
)


def short(steps: int = 2) -> TrainingOptions:
    return TrainingOptions(steps=steps, warm_up_steps=1, save_every_steps=1, bfloat16=False)


RECIPE = replace(
    Recipe(),
    utterances=24,
    picture_clips=8,
    portraits=8,
    speaking_clips=4,
    smooth_clips=2,
    autoencoder_steps=(1, 1),
    audio=short(),
    image_encoder=short(),
    buckets=short(),
    interpolator=short(),
    face_detector=short(),
    denoiser=(
        (DenoiserOptions(window_frames=4, windows_per_step=2), short()),
        (DenoiserOptions(window_frames=6, windows_per_step=1, crop_side=8, crop_anywhere=0.5), short()),
    ),
    calm_clips=2,
    calm_denoiser=(DenoiserOptions(window_frames=6, windows_per_step=1, face_weight=1.0), short()),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("recipe")
    torch.set_num_threads(1)
    return folder, make_checkpoint(folder / "work", folder / "checkpoint", RECIPE)


def test_every_part_of_the_official_layout_is_written(made: tuple[Path, Path]) -> None:
    checkpoint = Checkpoint.open(made[1])
    assert checkpoint.name == "sonic-tiny"
    names = {path.name.removesuffix(".state.pt") for path in (made[0] / "work/training").glob("*.pt")}
    assert names == {
        "audio", "vae-crops", "vae-whole", "image-encoder", "buckets", "interpolator",
        "face-detector", "denoiser-4", "denoiser-6-crops", "calm-denoiser-6",
    }  # fmt: skip


def test_a_finished_recipe_is_only_written_again(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.load(made[1] / "Sonic/unet.pth", weights_only=True)
    make_checkpoint(made[0] / "work", made[0] / "again", RECIPE)
    after = torch.load(made[0] / "again/Sonic/unet.pth", weights_only=True)
    assert "step" not in capsys.readouterr().out
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
