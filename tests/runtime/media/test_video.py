from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sonic.errors import InputError, OutputError
from sonic.media import video as video_module
from sonic.media.audio import Sound
from sonic.media.video import Video, save_video
from sonic.storage.spool import ArraySpool

AAC_FRAME_SAMPLES = 1024


def picture_frames(count: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth pattern that moves, uint8 (count, height, width, 3)."""
    time, row, column = np.ogrid[:count, :height, :width]
    red = 128 + 60 * np.sin((row + 3 * time) / 9) + 0 * column
    green = 128 + 60 * np.cos((column - 2 * time) / 11) + 0 * row
    blue = 128 + 40 * np.sin((row + column) / 13) + 0 * time
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def tone(seconds: float, rate_hz: int = 16_000, channels: int = 1, silent: float = 0.0) -> Sound:
    """A tone of 440 Hz after `silent` seconds of silence."""
    at = np.arange(round(seconds * rate_hz)) / rate_hz
    values = np.where(at < silent, 0, 8000 * np.sin(2 * np.pi * 440 * at)).astype(np.int16)
    return Sound(values[:, None].repeat(channels, axis=1), rate_hz)


def read_frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Samples -1..1 (channels, n) and their rate."""
    with av.open(str(path)) as container:
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return np.concatenate(parts, axis=1), container.streams.audio[0].rate


def test_a_video_is_an_array_to_numpy() -> None:
    frames = picture_frames()
    spool = ArraySpool((48, 64, 3), np.uint8, memory_limit_bytes=0)
    spool.append(frames)
    sound = tone(0.5)
    for held in (frames, spool):
        video = Video(held, 25, sound)
        assert (video.shape, video.dtype, video.ndim) == ((12, 48, 64, 3), np.uint8, 4)
        assert len(video) == 12
        assert video.fps == video.frame_rate_hz == 25.0
        assert video.duration_seconds == pytest.approx(0.48)
        assert video.sound is sound
        np.testing.assert_array_equal(np.asarray(video), frames)
        np.testing.assert_array_equal(video[3], frames[3])
        np.testing.assert_array_equal(video[2:4], frames[2:4])
        np.testing.assert_array_equal(np.stack(list(video)), frames)
        assert np.asarray(video, np.float32).dtype == np.float32
        assert "64x48" in repr(video)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 4), np.uint8), np.zeros((2, 4, 4, 3))],
    ids=["three axes", "four channels", "float"],
)
def test_frames_of_another_kind_are_refused(frames: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uint8 of shape"):
        Video(frames, 25)
    with pytest.raises(InputError, match="uint8 of shape"):
        save_video(frames, tmp_path / "a.mp4", frame_rate_hz=25)


@pytest.mark.parametrize("rate", [0, -25, float("nan"), float("inf"), 1e-9])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="frame rate"):
        Video(picture_frames(), rate)


def test_the_picture_comes_back(tmp_path: Path) -> None:
    frames = picture_frames()
    save_video(frames, tmp_path / "a.mp4", frame_rate_hz=25)
    back = read_frames(tmp_path / "a.mp4")
    assert back.shape == frames.shape
    assert np.abs(back.astype(float) - frames).mean() < 3
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25
        assert stream.frames == 12
        assert not container.streams.audio
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    assert times == [Fraction(index, 25) for index in range(12)]


def test_colours_are_converted_as_they_are_labelled(tmp_path: Path) -> None:
    colour = np.array([200, 40, 60])
    frames = np.broadcast_to(colour.astype(np.uint8), (3, 32, 32, 3))
    save_video(frames, tmp_path / "a.mp4", frame_rate_hz=25)
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        labels = (context.color_primaries, context.color_trc, context.colorspace)
        assert (*map(int, labels), int(context.color_range)) == (1, 1, 1, 1)
        planes = next(container.decode(video=0)).to_ndarray()
    # ITU-R BT.709-6, items 3.2 to 3.4, 8 bits.
    luma = colour @ [0.2126, 0.7152, 0.0722]
    expected = 16 + 219 / 255 * luma, 128 + 224 / 255 * (60 - luma) / 1.8556
    assert planes[:32].mean() == pytest.approx(expected[0], abs=1.5)
    assert planes[32:40].mean() == pytest.approx(expected[1], abs=1.5)


@pytest.mark.parametrize(
    ("rate_hz", "channels"), [(8_000, 1), (16_000, 1), (37_800, 2), (44_100, 2), (192_000, 1)]
)
@pytest.mark.parametrize("frame_rate_hz", [25, 12.5])
@pytest.mark.parametrize("sound_seconds", [0.3, 3.0])
def test_sound_and_picture_last_as_long(
    tmp_path: Path, rate_hz: int, channels: int, frame_rate_hz: float, sound_seconds: float
) -> None:
    video = Video(picture_frames(19), frame_rate_hz, tone(sound_seconds, rate_hz, channels))
    save_video(video, tmp_path / "a.mp4")
    assert len(read_frames(tmp_path / "a.mp4")) == 19
    samples, rate = read_sound(tmp_path / "a.mp4")
    assert len(samples) == channels
    assert rate == {37_800: 44_100, 192_000: 48_000}.get(rate_hz, rate_hz)
    surplus = samples.shape[1] - video.duration_seconds * rate
    assert -1 <= surplus < AAC_FRAME_SAMPLES
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.duration / av.time_base == pytest.approx(video.duration_seconds, abs=2e-3)
    end = round(min(sound_seconds, video.duration_seconds) * rate)
    assert np.abs(samples[:, end - rate // 20 : end]).max() > 0.2
    assert np.abs(samples[:, end + rate // 5 :]).max(initial=0) < 0.01


def test_sound_starts_with_the_picture(tmp_path: Path) -> None:
    save_video(Video(picture_frames(20), 25, tone(0.8, silent=0.4)), tmp_path / "a.mp4")
    samples, rate = read_sound(tmp_path / "a.mp4")
    onset = np.argmax(np.abs(samples[0]) > 0.05) / rate
    assert onset == pytest.approx(0.4, abs=0.005)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert next(container.decode(audio=0)).pts == 0


def test_packets_of_sound_and_picture_alternate(tmp_path: Path) -> None:
    # Longer than the 10 s that FFmpeg itself waits for a stream that lags.
    save_video(Video(picture_frames(250, 16, 16), 12.5, tone(20)), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        places = [(p.stream.type, p.pos, p.dts * p.time_base) for p in container.demux() if p.size]
    places.sort(key=lambda place: place[1])
    latest = {"audio": 0.0, "video": 0.0}
    for kind, _, seconds in places:
        latest[kind] = float(seconds)
        assert abs(latest["audio"] - latest["video"]) < 1.5


def test_a_given_sound_replaces_the_videos_own(tmp_path: Path) -> None:
    video = Video(picture_frames(), 25, tone(0.5, channels=2))
    save_video(video, tmp_path / "a.mp4", sound=tone(0.5, rate_hz=8_000))
    samples, rate = read_sound(tmp_path / "a.mp4")
    assert (len(samples), rate) == (1, 8_000)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    frames = picture_frames(30)
    spool = ArraySpool(frames.shape[1:], np.uint8, memory_limit_bytes=0)
    spool.append(frames)
    save_video(Video(frames, 25, tone(2)), tmp_path / "a.mp4")
    save_video(Video(spool, 25, tone(2)), tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_no_encoding_depends_on_what_the_memory_held_before(tmp_path: Path) -> None:
    video = Video(picture_frames(20, 128, 192), 25)
    encoded = set()
    for attempt in range(12):
        _ = [np.full(1000 * size, attempt + size, np.uint8) for size in range(1, 200)]
        save_video(video, tmp_path / "a.mp4")
        encoded.add((tmp_path / "a.mp4").read_bytes())
    assert len(encoded) == 1


def test_the_index_comes_first(tmp_path: Path) -> None:
    save_video(Video(picture_frames(), 25, tone(1)), tmp_path / "a.mp4")
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_a_lower_rate_factor_is_nearer(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(60, 200, (6, 32, 32, 3)).astype(np.uint8)
    errors = []
    for factor in (0, 18, 45):
        path = tmp_path / f"{factor}.mp4"
        save_video(frames, path, frame_rate_hz=25, constant_rate_factor=factor)
        errors.append(np.abs(read_frames(path).astype(float) - frames).mean())
    assert errors[0] < errors[1] < errors[2]


def test_frames_are_read_one_by_one_and_progress_is_told(tmp_path: Path) -> None:
    frames = picture_frames(8)
    events: list[object] = []

    class Lazy(ArraySpool):
        def __iter__(self) -> Iterator[np.ndarray]:
            for index, frame in enumerate(frames):
                events.append(index)
                yield frame

    spool = Lazy(frames.shape[1:], np.uint8)
    spool.append(frames)
    save_video(
        Video(spool, 25, tone(1)),
        tmp_path / "a.mp4",
        progress=lambda done, total: events.append((done, total)),
    )
    assert events == [event for index in range(8) for event in (index, (index + 1, 8))]


@pytest.mark.parametrize("name", ["a.avi", "a", "a.mp4.txt", ".mp4"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.mp4"):
        save_video(picture_frames(), tmp_path / name, frame_rate_hz=25)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 5, 4, 3), (2, 4, 5, 3), (2, 0, 4, 3)])
def test_frames_that_cannot_be_encoded_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least one frame|even width"):
        save_video(np.zeros(shape, np.uint8), tmp_path / "a.mp4", frame_rate_hz=25)
    with pytest.raises(InputError, match="even width"):
        save_video(np.zeros((1, 2, 16_386, 3), np.uint8), tmp_path / "a.mp4", frame_rate_hz=25)


def test_options_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path, frames = tmp_path / "a.mp4", picture_frames(2)
    with pytest.raises(InputError, match="frame_rate_hz"):
        save_video(frames, path)
    with pytest.raises(InputError, match="frame_rate_hz"):
        save_video(Video(frames, 25), path, frame_rate_hz=25)
    for factor in (-1, 52):
        with pytest.raises(InputError, match="rate factor"):
            save_video(frames, path, frame_rate_hz=25, constant_rate_factor=factor)
    for samples in (np.zeros(9, np.int16), np.zeros((9, 3), np.int16), np.zeros((9, 1))):
        with pytest.raises(InputError, match="int16 samples"):
            save_video(frames, path, frame_rate_hz=25, sound=Sound(samples, 16_000))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_with_usual_permissions(tmp_path: Path) -> None:
    path, usual = tmp_path / "a.mp4", tmp_path / "usual"
    path.write_bytes(b"old")
    usual.touch()
    save_video(picture_frames(), path, frame_rate_hz=25)
    assert len(read_frames(path)) == 12
    assert path.stat().st_mode == usual.stat().st_mode
    assert sorted(tmp_path.iterdir()) == [path, usual]


def test_names_with_odd_characters_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "concat:a").mkdir()
    for name in (
        "concat:a.mp4",
        "concat:a/b.mp4",
        "%03d.mp4",
        "ä ö.MP4",
        "-.mp4",
        "x" * 250 + ".mp4",
    ):
        save_video(picture_frames(2), name, frame_rate_hz=25)
        assert (tmp_path / name).is_file()


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop, RuntimeError])
@pytest.mark.parametrize("at", [1, 60])
def test_an_interruption_leaves_what_was_there(tmp_path: Path, error: type[BaseException], at: int) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def interrupt(done: int, _: int) -> None:
        if done == at:
            raise error

    with pytest.raises(error):
        save_video(Video(picture_frames(80), 25, tone(3)), path, progress=interrupt)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_an_interruption_before_the_rename_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(video_module.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_video(picture_frames(), tmp_path / "a.mp4", frame_rate_hz=25)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.mkdir()
    with pytest.raises(OutputError, match="not a file"):
        save_video(picture_frames(), path, frame_rate_hz=25)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing.a\.mp4.*folder"):
        save_video(picture_frames(), tmp_path / "missing" / "a.mp4", frame_rate_hz=25)


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(video_module.os, "open", refuse)
    with pytest.raises(OutputError, match=r"a\.mp4.*writable.*Permission denied"):
        save_video(picture_frames(), tmp_path / "a.mp4", frame_rate_hz=25)


FULL_DISK = """
import resource, sys
import numpy as np
from sonic.errors import OutputError
from sonic.media.video import save_video
limit = int(sys.argv[2])
frames = np.random.default_rng(0).integers(0, 256, (90, 64, 64, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    save_video(frames, sys.argv[1], frame_rate_hz=25)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("limit_bytes", [0, 10_000, 200_000])
def test_a_file_that_cannot_grow_is_removed(tmp_path: Path, limit_bytes: int) -> None:
    pytest.importorskip("resource")
    path = tmp_path / "a.mp4"
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), str(limit_bytes)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(f"{path}: the video cannot be written (")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(video_module.os, "fsync", fail)
    with pytest.raises(OutputError, match=r"a\.mp4.*the disk is full"):
        save_video(picture_frames(), tmp_path / "a.mp4", frame_rate_hz=25)
    assert list(tmp_path.iterdir()) == []
