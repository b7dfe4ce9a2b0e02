"""The whole path on two checkpoints of different dimensions, held against PyTorch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from sonic.bundle.manifest_file import read_manifest
from sonic.options import GenerationOptions
from sonic_convert.cli.main import main
from sonic_convert.export.submodels import SUBMODELS
from sonic_convert.parity.parity import measure_parity


@pytest.mark.parametrize("which", ["small", "other"])
@pytest.mark.parametrize(
    ("speech", "options"),
    [
        ("short_wav", GenerationOptions(inference_steps=3, min_resolution=64)),
        (
            "long_mp3",
            GenerationOptions(inference_steps=2, min_resolution=64, dynamic_scale=1.3, motion_scale=0.8),
        ),
    ],
)
def test_bundle_equals_torch(
    which: str,
    speech: str,
    options: GenerationOptions,
    portrait: Path,
    request: pytest.FixtureRequest,
) -> None:
    converted = request.getfixturevalue(which)
    audio = request.getfixturevalue(speech)
    report = measure_parity(converted.checkpoint, converted.bundle, portrait, audio, options)
    assert report.height > report.width
    assert report.frames == {"short_wav": 8, "long_mp3": 53}[speech]
    compared = {row.name for row in report.rows}
    assert compared == {s.name for s in SUBMODELS} | {
        "audio_tokens",
        "uncond_tokens",
        "buckets",
        "latents",
    }
    for row in report.rows:
        assert row.difference.relative_l2 <= (1e-3 if row.name == "latents" else 1e-4), row
    assert report.video.psnr_db >= 50
    assert report.passed


def test_command_reports_and_records(small, portrait: Path, short_wav: Path, tmp_path: Path) -> None:
    report, picture = tmp_path / "parity.json", tmp_path / "worst.png"
    bundle = tmp_path / "bundle"
    shutil.copytree(small.bundle, bundle)  # the command writes into its manifest
    arguments = ["parity", str(small.checkpoint), str(bundle), "--image", str(portrait), "--audio",
                 str(short_wav), "--steps", "1", "--resolution", "64", "--json", str(report),
                 "--picture", str(picture)]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    numbers = json.loads(report.read_text())
    assert numbers["passed"] and numbers["video"]["psnr_db"] >= 50
    assert read_manifest(bundle).parity["video"] == numbers["video"]
    height, width = numbers["video"]["height"], numbers["video"]["width"]
    assert Image.open(picture).size == (3 * width, height)


def test_parity_with_another_checkpoint_fails(small, tmp_path: Path, portrait: Path, short_wav: Path) -> None:
    from sonic_convert.synth.synthesize import synthesize

    wrong = synthesize(tmp_path / "wrong", "small", seed=7)
    arguments = ["parity", str(wrong), str(small.bundle), "--image", str(portrait), "--audio",
                 str(short_wav), "--steps", "1", "--resolution", "64", "--no-record"]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    assert "FAILED" in result.output
