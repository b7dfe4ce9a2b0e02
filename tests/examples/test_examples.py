"""The scripts in examples/, as a reader runs them, with a few denoising steps."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest

ROOT = Path(__file__).parents[2]
PORTRAIT = ROOT / "convert/sonic_convert/assets/portrait.png"
TINY = ROOT / "runtime/sonic/bundles/sonic-tiny"
SECONDS = 300  # far more than any needs, so that one that hangs ends
# Stops PyTorch and the other packages from being imported, so that a script works where the runtime is alone.
ALONE = """
import runpy, sys
for name in ("torch", "onnx", "sonic_convert", "sonic_calibration"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(script: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", ALONE, str(ROOT / "examples" / script), *map(str, arguments)]


def run(folder: Path, script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments), cwd=folder, capture_output=True, text=True, timeout=SECONDS
    )


def frame_count(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_generate_video(short_wav: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "generate_video.py", PORTRAIT, short_wav, "video.mp4", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert "denoising: 50 %" in lines and "denoising: 100 %" in lines
    assert lines[-1] == "video.mp4: 18 frames of 128x128 pixels"
    assert frame_count(tmp_path / "video.mp4") == 18


def test_generate_video_stops_at_its_time_limit(short_wav: Path, tmp_path: Path) -> None:
    arguments = (PORTRAIT, short_wav, "video.mp4", "--steps", "1000", "--time-limit", "1")
    done = run(tmp_path, "generate_video.py", *arguments)
    assert (done.returncode, done.stderr) == (1, "cancelled; no video was written\n")
    assert list(tmp_path.iterdir()) == []


def test_generate_video_stops_at_control_c(short_wav: Path, tmp_path: Path) -> None:
    arguments = (PORTRAIT, short_wav, "video.mp4", "--steps", "1000")
    started = subprocess.Popen(
        command("generate_video.py", *arguments),
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with started:
        assert started.stdout is not None
        for line in started.stdout:  # the model is loaded, and the clip on its way
            if line.startswith("speech"):
                break
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=SECONDS)
    assert (started.returncode, errors) == (1, "cancelled; no video was written\n")
    assert list(tmp_path.iterdir()) == []


def test_generate_video_says_what_is_wrong(short_wav: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "generate_video.py", "nobody.png", short_wav, "video.mp4")
    assert done.returncode == 2
    assert "nobody.png" in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_batch_of_clips(short_wav: Path, tmp_path: Path) -> None:
    shutil.copy(short_wav, tmp_path / "hello.wav")
    (tmp_path / "broken.wav").write_text("no sound")
    speech = ("hello.wav", "broken.wav", "hello.wav")
    arguments = (PORTRAIT, *speech, "--output-folder", "videos", "--steps", "1")
    done = run(tmp_path, "batch_of_clips.py", *arguments)
    assert done.returncode == 1 and done.stderr == "", done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == "hello.wav: videos/00-hello.mp4, 0.72 s"
    assert second.startswith("broken.wav: failed: ") and second.count("broken.wav") == 2
    assert third == "hello.wav: videos/02-hello.mp4, 0.72 s"
    videos = sorted((tmp_path / "videos").iterdir())
    assert [path.name for path in videos] == ["00-hello.mp4", "02-hello.mp4"]
    assert [frame_count(path) for path in videos] == [18, 18]
    assert videos[0].read_bytes() != videos[1].read_bytes()  # each clip has a seed of its own


def test_verify_bundle(tmp_path: Path) -> None:
    done = run(tmp_path, "verify_bundle.py")
    assert done.returncode == 0, done.stdout + done.stderr
    *submodels, clip = done.stdout.splitlines()
    assert sorted(line.split(":")[0] for line in submodels) == [
        "audio2bucket", "audio2token", "audio_encoder", "face_detector", "frame_interpolator",
        "image_encoder", "unet", "vae_decoder", "vae_encoder",
    ]  # fmt: skip
    assert all(": passed, " in line for line in submodels) and clip.startswith("clip: passed, ")


def test_verify_bundle_refuses_a_changed_file(tmp_path: Path) -> None:
    bundle = shutil.copytree(TINY, tmp_path / "changed")
    weights = bundle / "audio2bucket/model.onnx"
    changed = bytearray(weights.read_bytes())
    changed[len(changed) // 2] ^= 1
    weights.write_bytes(changed)
    done = run(tmp_path, "verify_bundle.py", bundle)
    assert done.returncode == 2
    assert str(weights) in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_help(script: str, tmp_path: Path) -> None:
    done = run(tmp_path, script, "--help")
    assert done.returncode == 0 and "bundle" in done.stdout, done.stderr
