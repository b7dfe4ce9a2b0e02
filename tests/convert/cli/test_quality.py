"""The command that measures a video's quality."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sonic.media.audio import Sound
from sonic.media.video import Video, save_video
from sonic_calibration.quality.mouth import speech_opening
from sonic_convert.cli.main import main
from sonic_convert.drawing.demo_portrait import draw_portrait, face_box

SIZE = (192, 240)
BOX = face_box(SIZE)
BOX_TEXT = ",".join(f"{value:.1f}" for value in BOX)
FRAMES = 40


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["quality", *map(str, arguments)])


@pytest.fixture(scope="module")
def portrait_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "portrait.png"
    draw_portrait(1, SIZE).save(path)
    return path


@pytest.fixture(scope="module")
def video_path(
    portrait_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    recording: tuple[np.ndarray, int],
) -> Path:
    """A drawn face whose mouth, a dark box, opens as the demo's recording asks for."""
    samples, rate_hz = recording
    sound = Sound(samples[:, None], rate_hz)
    x1, y1, x2, y2 = BOX
    middle, lips = round((x1 + x2) / 2), round(y1 + 0.72 * (y2 - y1))
    frames = np.stack([np.asarray(draw_portrait(1, SIZE))] * FRAMES)
    for frame, opening in zip(frames, speech_opening(sound, FRAMES, 25), strict=True):
        frame[lips : lips + round(14 * opening), middle - 8 : middle + 8] = (50, 16, 20)
    path = tmp_path_factory.mktemp("quality") / "video.mp4"
    save_video(Video(frames, 25, sound), path)
    return path


def test_a_video_is_judged(video_path: Path, portrait_path: Path, tmp_path: Path) -> None:
    report, sheet = tmp_path / "quality.json", tmp_path / "sheet.png"
    result = run(video_path, "--face-box", BOX_TEXT, "--portrait", portrait_path, "--reference", video_path,
                 "--json", report, "--sheet", sheet)  # fmt: skip
    assert result.exit_code == 0, result.output
    numbers = json.loads(report.read_text())
    assert numbers["frames"] == FRAMES
    assert numbers["lip_sync"]["correlation"] > 0.95
    assert numbers["lip_sync"]["lag_frames"] == 0
    assert numbers["identity"]["psnr_db"] > 28  # what the encoder loses, and no more
    assert numbers["difference"]["psnr_db"] == 100
    assert 0.5 < numbers["sharpness"]["ratio"] < 1.2
    assert Image.open(sheet).width == 1600
    for text in ("lip sync", "sharpness", "identity", "reference", f"{FRAMES} frames of 192 x 240"):
        assert text in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"quality.json", "sheet.png"}


def test_a_bundle_finds_the_face(video_path: Path, small, tmp_path: Path) -> None:
    report = tmp_path / "quality.json"
    result = run(video_path, "--bundle", small.bundle, "--json", report)
    assert result.exit_code == 0, result.output
    x1, y1, x2, y2 = json.loads(report.read_text())["face_box"]
    assert x1 < (BOX[0] + BOX[2]) / 2 < x2
    assert y1 < (BOX[1] + BOX[3]) / 2 < y2


def test_a_picture_without_a_face_is_named(small, tmp_path: Path) -> None:
    path = tmp_path / "sky.mp4"
    save_video(np.full((2, 128, 128, 3), (90, 120, 200), np.uint8), path, frame_rate_hz=25)
    result = run(path, "--bundle", small.bundle)
    assert result.exit_code == 2
    assert "no face was found in the first frame of" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --bundle"),
        (["--bundle", "x", "--face-box", "1,2,3,4"], "give either --bundle"),
        (["--face-box", "1,2,3"], "four numbers"),
        (["--face-box", "1,2,3,mouth"], "four numbers"),
        (["--face-box", "9,9,5,5"], "x1 < x2"),
        (["--face-box", "500,500,600,600"], "does not show"),
        (["--bundle", "no-such-bundle"], "no bundle 'no-such-bundle'"),
        (["--face-box", BOX_TEXT, "--portrait", "missing.png"], "missing.png does not exist"),
        (["--face-box", BOX_TEXT, "--reference", "missing.mp4"], "missing.mp4 does not exist"),
        (["--face-box", BOX_TEXT, "--json", "no/folder/a.json"], "cannot write no/folder/a.json"),
        (["--face-box", BOX_TEXT, "--sheet", "a.jpg"], "should end in .png"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(video_path: Path, arguments: list[str], message: str) -> None:
    result = run(video_path, *arguments)
    assert result.exit_code == 2, result.output
    (error,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert message in error


def test_a_portrait_of_another_shape_gives_a_note(video_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    draw_portrait(1, (400, 200)).save(path)
    result = run(video_path, "--face-box", BOX_TEXT, "--portrait", path)
    assert result.exit_code == 0, result.output
    assert "if the video was made from a crop, give that crop" in result.output
