"""A whole generation through the public interface."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import sonic
from sonic.cli.main import main
from sonic.generation import Generation
from sonic.options import RunOptions
from sonic.plan import ClipPlan
from sonic_convert.drawing.demo_portrait import draw_portrait

FAST = {"inference_steps": 1, "min_resolution": 64}


def test_published_interface(small, portrait: Path, long_mp3: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SONIC_HOME", str(small.bundle.parent))
    model = sonic.load_model(small.bundle.name)
    video_tensor = model.generate(
        image=str(portrait), audio=str(long_mp3), duration=1, min_resolution=64, inference_steps=1,
        dynamic_scale=1.1, motion_scale=1.05, lip_sync_correction=True, smooth_motion=True,
    )  # fmt: skip
    assert video_tensor.shape == (25, 128, 64, 3)
    assert np.asarray(video_tensor).dtype == np.uint8
    assert video_tensor.sound is not None and video_tensor.sound.duration_seconds == pytest.approx(1)
    sonic.save_video(video_tensor, tmp_path / "output.mp4")
    with av.open(str(tmp_path / "output.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 25
        assert container.streams.audio[0].codec_context.name == "aac"


@pytest.mark.parametrize("speech", ["short_wav", "long_mp3"])
def test_video_is_as_long_as_the_sound(model, portrait, speech: str, request) -> None:
    video = model.generate(portrait, request.getfixturevalue(speech), **FAST)
    assert abs(video.duration_seconds - video.sound.duration_seconds) <= 1 / 25


def test_same_seed_same_bytes(model, portrait, short_wav) -> None:
    first, again, other = (
        np.asarray(model.generate(portrait, short_wav, seed=seed, **FAST)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("corrected", [False, True])
def test_a_stream_makes_the_file_of_the_whole_video(model, portrait, short_wav, tmp_path, corrected) -> None:
    options = FAST | {"image": portrait, "audio": short_wav, "lip_sync_correction": corrected}
    whole, streamed = tmp_path / "whole.mp4", tmp_path / "streamed.mp4"
    video = model.generate(**options)
    sonic.save_video(video, whole)
    with model.stream(**options, dump=tmp_path / "dump") as stream:
        assert stream.shape == video.shape
        sonic.save_video(stream, streamed)
        assert next(iter(stream), None) is None
    assert streamed.read_bytes() == whole.read_bytes()
    np.testing.assert_array_equal(np.load(tmp_path / "dump" / "frames.npy"), np.asarray(video)[:15:2])


def test_a_stream_that_is_left_early_ends_its_threads_and_writes_nothing(
    model, portrait, short_wav, tmp_path
) -> None:
    before = threading.active_count()
    with (
        pytest.raises(RuntimeError, match="enough"),
        model.stream(image=portrait, audio=short_wav, dump=tmp_path / "dump", **FAST) as stream,
    ):
        next(iter(stream))
        raise RuntimeError("enough")
    assert threading.active_count() == before and not (tmp_path / "dump").exists()


@pytest.mark.parametrize("memory", sonic.options.MEMORY_MODES)
def test_memory_modes_give_the_same_video(small, model, portrait, long_mp3, memory: str) -> None:
    other = sonic.load_model(small.bundle, memory=memory)
    expected = np.asarray(model.generate(portrait, long_mp3, duration=2.5, **FAST))
    found = np.asarray(other.generate(portrait, long_mp3, duration=2.5, **FAST))
    np.testing.assert_array_equal(found, expected)


def test_a_clip_that_does_not_fit_into_memory_is_refused(model, portrait, short_wav, monkeypatch) -> None:
    for module in ("memory", "execution"):
        monkeypatch.setattr(f"sonic.{module}.available_bytes", lambda: 10_000_000)
    with pytest.raises(
        sonic.InputError, match=r"needs about 0\.\d+ GB .*0\.01 GB are free; choose a lower resolution$"
    ):
        model.generate(portrait, short_wav, **FAST)
    several = sonic.SonicModel(model.engine, RunOptions(memory="balanced", threads=1))
    monkeypatch.setattr("sonic.execution.cpu_count", lambda: 3)
    with pytest.raises(sonic.InputError, match="lower resolution or the memory mode 'low'"):
        several.generate(portrait, short_wav, **FAST)
    with pytest.raises(sonic.InputError, match="auto, low, balanced, fast"):
        sonic.load_model(model.engine.bundle.directory, memory="huge")


def test_corrections_that_are_off_change_nothing(model, portrait, short_wav) -> None:
    plain = model.generate(portrait, short_wav, **FAST)
    off = model.generate(portrait, short_wav, lip_sync_correction=False, smooth_motion=False, **FAST)
    smooth = model.generate(portrait, short_wav, smooth_motion=True, **FAST)
    np.testing.assert_array_equal(plain, off)
    np.testing.assert_array_equal(plain.sound.samples, off.sound.samples)
    assert smooth.shape == plain.shape and not np.array_equal(plain, smooth)


def test_motion_scales_reach_the_unet(model, portrait, short_wav) -> None:
    ids = {}
    for name, scales in {"plain": {}, "both": {"dynamic_scale": 1.5}, "mouth": {"motion_scale": 2.0}}.items():
        calls = []
        model.generate(portrait, short_wav, observer=calls.append, **scales, **FAST)
        ids[name] = next(c for c in calls if c.submodel == "unet").inputs["added_time_ids"][0]
    np.testing.assert_allclose(ids["both"], ids["plain"] * [1, 1.5, 1.5], rtol=1e-5)
    np.testing.assert_allclose(ids["mouth"], ids["plain"] * [1, 1, 2], rtol=1e-5)


def test_dump_and_noise(model, portrait, short_wav, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((8, 4, 16, 8)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    dump = tmp_path / "dump"
    video = model.generate(portrait, short_wav, noise=tmp_path / "noise.npy", dump=dump, **FAST)
    arrays = {path.stem: np.load(path) for path in dump.iterdir()}
    tokens = model.manifest.submodels["audio2token"].outputs[0].shape[2:]
    assert {name: (a.shape, a.dtype.name) for name, a in arrays.items()} == {
        "audio_tokens": ((8, *tokens), "float32"),
        "uncond_tokens": (tokens, "float32"),
        "buckets": ((8, 2), "float32"),
        "latents": ((8, 4, 16, 8), "float32"),
        "frames": ((8, 128, 64, 3), "uint8"),
    }
    np.testing.assert_array_equal(np.asarray(video)[:15:2], arrays["frames"])
    drawn = np.asarray(model.generate(portrait, short_wav, **FAST))
    assert not np.array_equal(drawn, np.asarray(video))
    with pytest.raises(sonic.InputError, match=r"float32 \(8, 4, 16, 8\)"):
        model.generate(portrait, short_wav, noise=noise[:, :, :8], **FAST)


def test_face_crop_is_square(model, portrait, short_wav) -> None:
    video = model.generate(portrait, short_wav, expand_ratio=0.3, **FAST)
    assert video.shape[1:3] == (64, 64)


def test_small_portraits_are_not_enlarged_beyond_512(model, portrait, short_wav, monkeypatch) -> None:
    seen = {}

    def stop(generation: Generation, plan: ClipPlan) -> None:
        seen["size"] = plan.size
        raise KeyboardInterrupt

    monkeypatch.setattr(Generation, "_initial_noise", stop)
    with pytest.warns(sonic.SonicWarning, match="lowered from 768 to 512"), pytest.raises(KeyboardInterrupt):
        model.generate(portrait, short_wav, min_resolution=768)
    assert seen["size"].width == 512


def test_the_largest_of_several_faces_is_used(model, short_wav, tmp_path: Path) -> None:
    picture = Image.new("RGB", (900, 560), (90, 110, 150))
    picture.paste(draw_portrait(3).resize((400, 500)), (20, 30))
    picture.paste(draw_portrait(3).resize((240, 300)), (620, 200))
    picture.save(tmp_path / "two.png")
    with pytest.warns(sonic.SonicWarning, match="2 faces; the largest"):
        video = model.generate(tmp_path / "two.png", short_wav, duration=0.2, **FAST)
    assert video.shape[1:3] == (64, 128)


BAD = {
    "missing image": ({"image": "missing.png"}, "missing.png"),
    "empty image": ({"image": "empty.png"}, "empty.png"),
    "truncated image": ({"image": "truncated.png"}, "truncated.png"),
    "sound as image": ({"image": "short.wav"}, "short.wav"),
    "oversized image": ({"image": "huge.png"}, "huge.png"),
    "no face": ({"image": "grey.png"}, "no face"),
    "missing audio": ({"audio": "missing.wav"}, "missing.wav"),
    "empty audio": ({"audio": "empty.wav"}, "empty.wav"),
    "image as audio": ({"audio": "grey.png"}, "grey.png"),
    "silent audio": ({"audio": "silent.wav"}, "silent"),
    "short audio": ({"audio": "blip.wav"}, "blip.wav"),
    "duration beyond the audio": ({"duration": "9"}, "9 s"),
    "no steps": ({"steps": "0"}, "steps"),
    "tiny resolution": ({"resolution": "5"}, "resolution"),
    "missing noise": ({"noise": "missing.npy"}, "missing.npy"),
    "noise that is none": ({"noise": "grey.png"}, "grey.png"),
    "wrong noise": ({"noise": "wrong.npy"}, "float32 (8, 4, 16, 8)"),
    "unknown bundle": ({"bundle": "nowhere"}, "sonic-convert convert"),
    "not a video": ({"output": "video.avi"}, ".mp4"),
    "missing folder": ({"output": "nowhere/video.mp4"}, "folder"),
    "dump in a file": ({"dump": "grey.png"}, "dump"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, portrait, short_wav) -> Path:
    """Bad files of every kind."""
    import wave
    import zlib

    folder = tmp_path_factory.mktemp("inputs")
    (folder / "portrait.png").write_bytes(portrait.read_bytes())
    (folder / "short.wav").write_bytes(short_wav.read_bytes())
    for name in ("empty.png", "empty.wav"):
        (folder / name).touch()
    (folder / "truncated.png").write_bytes(portrait.read_bytes()[:3000])
    Image.new("RGB", (200, 200), (128, 128, 128)).save(folder / "grey.png")
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    bomb = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + header + zlib.crc32(header).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(bomb + b"\x00\x00\x00\x00IEND\xaeB`\x82")
    for name, samples in {"silent.wav": np.zeros(16_000), "blip.wav": np.full(800, 9000)}.items():
        with wave.open(str(folder / name), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.astype(np.int16).tobytes())
    np.save(folder / "wrong.npy", np.zeros((3, 4, 8, 8), np.float32))
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, small, inputs: Path, tmp_path: Path) -> None:
    changes, expected = BAD[case]
    options = {"bundle": str(small.bundle), "image": "portrait.png", "audio": "short.wav", "steps": "1",
               "resolution": "64", "output": "video.mp4"} | changes  # fmt: skip
    for name in ("image", "audio", "noise", "dump"):
        if name in options:
            options[name] = str(inputs / options[name])
    options["output"] = str(tmp_path / options["output"])
    before = sorted(inputs.iterdir())
    result = CliRunner().invoke(main, ["generate", *(f"--{k}={v}" for k, v in options.items())])
    assert result.exit_code == 2, (result.output, result.exception)
    message = next(line for line in result.output.splitlines() if line.startswith("error: "))
    assert expected in message
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == [] and sorted(inputs.iterdir()) == before


def test_interrupt_leaves_nothing(small, inputs: Path, tmp_path: Path, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sonic.media.video._encode", interrupt)
    arguments = ["generate", f"--bundle={small.bundle}", f"--image={inputs / 'portrait.png'}",
                 f"--audio={inputs / 'short.wav'}", f"--output={tmp_path / 'v.mp4'}", "--steps=1",
                 "--resolution=64"]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_info_prints_the_manifest(small) -> None:
    result = CliRunner().invoke(main, ["info", str(small.bundle)])
    assert result.exit_code == 0, result.output
    for text in ("unet", "frame_interpolator", "window_shift_frames", "Sonic/unet.pth", "CC0"):
        assert text in result.output


def test_thin_script(small, inputs: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "generate.py"
    output = tmp_path / "video.mp4"
    command = [sys.executable, str(script), f"--bundle={small.bundle}", f"--image={inputs / 'portrait.png'}",
               f"--audio={inputs / 'short.wav'}", "--duration=0.5", "--resolution=64", "--steps=1",
               f"--output={output}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 1000
