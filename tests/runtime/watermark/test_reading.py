from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner
from skimage import data

from sonic.cli.main import main
from sonic.errors import InputError
from sonic.media.video import Video, save_video
from sonic.watermark import reading
from sonic.watermark.payload import Watermark
from sonic.watermark.reading import read_watermark

MARK = Watermark(0xABCDE, 60_000, 123_456)


def moving(frame_count: int) -> np.ndarray:
    """A photograph in which a part moves: uint8 (frames, 512, 512, 3)."""
    picture = data.astronaut()
    frames = np.repeat(picture[None], frame_count, axis=0)
    for index, frame in enumerate(frames):
        frame[100:300, 150:350] = np.roll(picture[100:300, 150:350], index % 9 - 4, axis=1)
    return frames


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("marked") / "marked.mp4"
    save_video(Video(moving(50), 25, watermark=MARK), path)
    return path


def test_a_saved_video_says_it(marked: Path) -> None:
    found = read_watermark(marked)
    assert found.detection is not None and found.detection.watermark == MARK
    assert (found.frames, found.width, found.height) == (50, 512, 512)


def test_two_seconds_at_crf_28_without_their_start_say_it(marked: Path, tmp_path: Path) -> None:
    attacked = tmp_path / "attacked.mp4"
    with av.open(str(marked)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    save_video(np.stack(frames[13:]), attacked, frame_rate_hz=25, constant_rate_factor=28)
    assert read_watermark(attacked).detection.watermark == MARK


def test_frames_alone_have_no_mark(tmp_path: Path) -> None:
    save_video(moving(5), tmp_path / "a.mp4", frame_rate_hz=25)
    assert read_watermark(tmp_path / "a.mp4").detection is None
    save_video(moving(5), tmp_path / "b.mp4", frame_rate_hz=25, watermark=MARK)
    assert read_watermark(tmp_path / "b.mp4").detection.watermark == MARK


def test_a_long_video_is_read_in_part(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_FRAMES", 7)
    assert read_watermark(marked).frames == 7
    monkeypatch.setattr(reading, "MOST_PIXELS", 3 * 512 * 512)
    assert read_watermark(marked).frames == 3


def test_the_command_says_what_it_found(marked: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["watermark", "read", str(marked)])
    assert done.exit_code == 0
    assert "bundle   abcde" in done.output and "time     2026-11-04T23:00Z" in done.output
    assert "job      123456" in done.output
    done = CliRunner().invoke(main, ["watermark", "read", "--json", str(marked)])
    values = json.loads(done.output)
    assert values["payload"] == f"{MARK.to_number():016x}" and values["false_positive_rate"] < 1e-6
    save_video(moving(2), tmp_path / "a.mp4", frame_rate_hz=25)
    done = CliRunner().invoke(main, ["watermark", "read", str(tmp_path / "a.mp4")])
    assert done.exit_code == 1 and "no watermark was found in 2 frames of 512 x 512" in done.output


BAD = {
    "no file": (None, "there is no such file"),
    "empty": (b"", "cannot be read"),
    "text": (b"hello " * 1000, "cannot be read"),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_video_is_one_sentence(name: str, tmp_path: Path) -> None:
    content, sentence = BAD[name]
    path = tmp_path / "video.mp4"
    if content is not None:
        path.write_bytes(content)
    done = CliRunner().invoke(main, ["watermark", "read", str(path)])
    assert done.exit_code == 2
    assert sentence in done.output and str(path) in done.output and done.output.count("\n") == 1


def test_pictures_that_are_too_small_are_one_sentence(tmp_path: Path) -> None:
    save_video(np.zeros((2, 16, 64, 3), np.uint8), tmp_path / "a.mp4", frame_rate_hz=25)
    with pytest.raises(InputError, match="pictures of 64x16 pixels should have 32 to 8192 on each side"):
        read_watermark(tmp_path / "a.mp4")
