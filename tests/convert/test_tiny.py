"""sonic-tiny, as the packages bring it along: checkpoint and bundle belong together, and it talks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sonic
from sonic.bundle.store import PACKAGED_BUNDLES, sha256_of
from sonic_calibration.quality.report import judge
from sonic_convert.checkpoint.checkpoint import EMBEDDED, Checkpoint
from sonic_convert.drawing.demo_portrait import draw_portrait

PORTRAIT, SPEECH = EMBEDDED / "portrait.png", EMBEDDED / "speech.wav"
# Of the picture, in parts of its sides: where `draw_portrait` puts the face of the example.
FACE_BOX = (0.264, 0.228, 0.736, 0.766)


@pytest.fixture(scope="module")
def tiny() -> sonic.SonicModel:
    return sonic.load_model(PACKAGED_BUNDLES / "sonic-tiny")


def test_the_checkpoint_is_found_by_name_and_the_bundle_was_made_from_it(tiny: sonic.SonicModel) -> None:
    checkpoint = Checkpoint.open("sonic-tiny")
    assert checkpoint.path == EMBEDDED / "sonic-tiny" and checkpoint.name == "sonic-tiny"
    assert "Apache-2.0" in tiny.manifest.license
    assert {source.path for source in tiny.manifest.sources} >= {"Sonic/unet.pth", "yoloface_v5m.pt"}
    for source in tiny.manifest.sources:
        assert sha256_of(checkpoint.path / source.path) == source.sha256, source.path
    assert tiny.constants == checkpoint.constants


def test_the_checkpoint_is_small() -> None:
    total = sum(path.stat().st_size for path in (EMBEDDED / "sonic-tiny").rglob("*") if path.is_file())
    assert 5e6 < total < 20e6


def test_the_example_portrait_is_drawn_as_its_readme_says() -> None:
    command = re.search(r"draw_portrait\(1, .*\)", (EMBEDDED / "README.md").read_text())
    assert command is not None
    drawn = eval(command.group(), {"draw_portrait": draw_portrait})  # noqa: S307 (our own file)
    shipped = np.asarray(Image.open(PORTRAIT).convert("RGB"), float)
    assert np.abs(np.asarray(drawn, float) - shipped).mean() < 1  # versions of Pillow differ a little


def test_it_talks(tiny: sonic.SonicModel) -> None:
    """With fewer steps than it is meant for, to be quick; docs/sonic-tiny.md has the real figures."""
    video = tiny.generate(PORTRAIT, SPEECH, inference_steps=8)
    side = video.shape[1]
    picture = np.asarray(Image.open(PORTRAIT).convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
    report = judge(video, tuple(side * part for part in FACE_BOX), picture)  # type: ignore[arg-type]
    assert report.lip_sync is not None and report.identity is not None
    assert report.lip_sync.correlation > 0.7 and abs(report.lip_sync.lag_frames) <= 1
    assert report.identity.psnr_db > 22


def test_the_detector_finds_the_example(tiny: sonic.SonicModel) -> None:
    from sonic.media.face import detect_faces

    picture = np.asarray(Image.open(PORTRAIT).convert("RGB"))
    with tiny.engine.open("face_detector") as detector:
        (face,) = detect_faces(picture, detector.run, tiny.constants.face)
    expected = np.array(FACE_BOX) * picture.shape[0]
    assert np.abs(np.array(face.box) - expected).max() < 0.05 * picture.shape[0]


def test_the_packaged_bundle_has_no_stray_files() -> None:
    sonic.load_model("sonic-tiny")  # by name; digests, and no file that the manifest does not list
    assert not list(Path(PACKAGED_BUNDLES).rglob("*.partial"))
