"""Contact sheets of short drawn videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sonic.errors import InputError, OutputError
from sonic.media.audio import Sound
from sonic.media.video import Video
from sonic_calibration.quality.contact_sheet import write_contact_sheet

BOX = (8.0, 8.0, 56.0, 72.0)
RED, TEAL = (204, 62, 74), (0, 118, 138)


def film(frames: int = 30, sound: bool = True) -> Video:
    """Skin with a mouth that opens and closes once a second, and a tone that follows it."""
    opening = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frames) / 25)
    pictures = np.full((frames, 80, 64, 3), (214, 160, 122), np.uint8)
    for picture, value in zip(pictures, opening, strict=True):
        picture[54 : 54 + round(12 * value), 26:38] = (50, 16, 20)
    at = np.arange(round(frames / 25 * 8000)) / 8000
    tone = (0.5 - 0.5 * np.cos(2 * np.pi * at)) * np.sin(2 * np.pi * 600 * at)
    recording = Sound((20_000 * tone).astype(np.int16)[:, None], 8000)
    return Video(pictures, 25, recording if sound else None)


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode, image.width) == ("PNG", "RGB", 1600)
        return np.asarray(image)


def colored(pixels: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((pixels == color).all(axis=2).sum())


@pytest.mark.parametrize("frames", [1, 2, 30, 400])
def test_a_sheet_shows_both_curves(frames: int, tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "a.png", film(frames), BOX, title="a mouth")
    pixels = drawn(tmp_path / "a.png")
    assert colored(pixels, RED) and colored(pixels, TEAL)
    margin = np.concatenate([pixels[:, -40:], pixels[-20:].reshape(1, -1, 3)[:, :40].repeat(len(pixels), 0)])
    assert (margin == pixels[0, 0]).all()  # nothing is drawn into the margin
    assert pixels[0, 0].min() > 240
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_missing_panels_make_the_sheet_shorter(tmp_path: Path) -> None:
    heights = []
    for box, sound in ((BOX, True), (BOX, False), (None, True), (None, False)):
        write_contact_sheet(tmp_path / "a.png", film(sound=sound), box)
        heights.append(len(drawn(tmp_path / "a.png")))
    assert heights[0] > max(heights[1:3]) and min(heights[1:3]) > heights[3]


def test_frames_stand_above_their_time(tmp_path: Path) -> None:
    """Each of four frames of different colours is centred above its quarter of the time axis."""
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    frames = np.stack([np.full((40, 40, 3), color, np.uint8) for color in colors])
    write_contact_sheet(tmp_path / "a.png", Video(frames, 25), frames=4)
    pixels = drawn(tmp_path / "a.png")
    for index, color in enumerate(colors):
        columns = np.flatnonzero((pixels == color).all(axis=2).any(axis=0))
        middle = 60 + (index + 0.5) * (1600 - 120) / 4
        assert (columns[0] + columns[-1]) / 2 == pytest.approx(middle, abs=2)


def test_the_same_video_gives_the_same_bytes_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    write_contact_sheet(path, film(), BOX, frames=3, title="x" * 500)
    first = path.read_bytes()
    write_contact_sheet(path, film(), BOX, frames=3, title="x" * 500)
    assert path.read_bytes() == first


def test_unusable_arguments_are_refused(tmp_path: Path) -> None:
    for name, video, frames, message in (
        ("a.jpg", film(3), 8, "should end in .png"),
        ("a.png", film(3), 0, "should have 1 to 24"),
        ("a.png", film(3), 25, "should have 1 to 24"),
        ("a.png", Video(film(3)[:0], 25), 8, "no frames to show"),
    ):
        with pytest.raises(InputError, match=message):
            write_contact_sheet(tmp_path / name, video, BOX, frames)
    with pytest.raises(InputError, match="does not show the mouth"):
        write_contact_sheet(tmp_path / "a.png", film(3), (900, 900, 950, 950))
    with pytest.raises(OutputError, match="cannot write"):
        write_contact_sheet(tmp_path / "missing" / "a.png", film(3))
    assert list(tmp_path.iterdir()) == []
