"""Videos are read as they were written."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sonic.errors import InputError
from sonic.media.audio import Sound
from sonic.media.video import Video, save_video
from sonic_calibration.quality.video_file import read_video


def frames(count: int = 10) -> np.ndarray:
    """A smooth pattern that moves, uint8 (count, 48, 64, 3)."""
    time, row, column = np.ogrid[:count, :48, :64]
    planes = [np.sin((row + 2 * time) / 9) + 0 * column, np.cos((column - time) / 11) + 0 * row,
              np.sin((row + column) / 13) + 0 * time]  # fmt: skip
    return (128 + 60 * np.stack(planes, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("rate_hz", [25, 12.5, 30000 / 1001])
def test_frames_colours_and_sound_come_back(tmp_path: Path, rate_hz: float) -> None:
    at = np.arange(16_000) / 16_000
    samples = np.where(at < 0.2, 0, 12_000 * np.sin(2 * np.pi * 440 * at)).astype(np.int16)
    video = Video(frames(), rate_hz, Sound(samples[:, None], 16_000))
    save_video(video, tmp_path / "a.mp4", constant_rate_factor=4)
    back = read_video(tmp_path / "a.mp4", tmp_path)
    assert back.shape == video.shape
    assert back.frame_rate_hz == pytest.approx(rate_hz)
    assert np.abs(np.asarray(back, np.float64) - frames()).mean() < 2
    assert back.sound is not None
    start = np.flatnonzero(np.abs(back.sound.samples[:, 0]) > 3000)[0] / back.sound.sample_rate_hz
    assert start == pytest.approx(0.2, abs=0.01)  # the encoder's delay is compensated
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_labelled_colours_are_read_as_labelled(tmp_path: Path) -> None:
    color = np.array([200, 40, 60])
    save_video(np.full((3, 32, 32, 3), color, np.uint8), tmp_path / "a.mp4", frame_rate_hz=25)
    np.testing.assert_allclose(np.asarray(read_video(tmp_path / "a.mp4"))[1].mean((0, 1)), color, atol=3)


def test_a_video_without_sound_has_none(tmp_path: Path) -> None:
    save_video(frames(), tmp_path / "a.mp4", frame_rate_hz=25)
    assert read_video(tmp_path / "a.mp4").sound is None


def test_an_uneven_frame_rate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index, pixels in enumerate(frames()):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = index + 8 * (index > 4), Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="convert it to a constant frame rate"):
        read_video(path)


def test_files_that_are_not_videos_are_refused(tmp_path: Path) -> None:
    save_video(frames(), tmp_path / "a.mp4", frame_rate_hz=25)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for name, message in (
        ("missing.mp4", "does not exist"),
        (".", "is a folder"),
        ("cut.mp4", "cannot be decoded as a video|holds no picture"),
        ("text.mp4", "cannot be decoded as a video"),
        ("empty.mp4", "cannot be decoded as a video"),
        ("sound.mp4", "holds no pictures"),
    ):
        with pytest.raises(InputError, match=message):
            read_video(tmp_path / name)
