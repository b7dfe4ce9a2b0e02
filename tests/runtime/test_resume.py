"""Clips that are stopped at any moment go on where they were, and end with the same bytes."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from manifests import write_values
from PIL import Image

import sonic
from sonic import resume
from sonic.bundle.presets import SpeedPreset, StepRule
from sonic.cli.main import main
from sonic.engines.registry import make_engine
from sonic.engines.watched import Call
from sonic.options import RunOptions
from sonic.resume import ClipCheckpoint, checkpoint_path
from sonic.storage import checkpoint as checkpoint_file
from sonic.storage.checkpoint import read_checkpoint

STEPS = 3
QUICK = {"inference_steps": STEPS, "min_resolution": 64}
# Later steps use the image's difference of step 1 and the audio's of step 2.
REUSING = SpeedPreset(
    (
        StepRule(700.0),
        StepRule(12.0, (1, 2), image_reuse=0.8),
        StepRule(2.0, (2,), image_reuse=0.5, audio_reuse=0.7),
        StepRule(0.3, (2,), image_reuse=0.4, audio_reuse=0.6),
    )
)
# A command that is killed at the n-th call of a function, before or after it.
KILLED = """
import importlib, os, signal, sys
from sonic import resume
from sonic.cli.main import main
resume.SLOW_SECONDS = 0
place, name, count, when = sys.argv.pop(1).split()
owner = importlib.import_module(place.partition(":")[0])
for part in filter(None, place.partition(":")[2].split(".")):
    owner = getattr(owner, part)
function, calls = getattr(owner, name), 0
def killing(*args, **options):
    global calls
    calls += 1
    if calls == int(count) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*args, **options)
    if calls == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, killing)
main()
"""
SAMPLER = "sonic.diffusion.sampler:ClipSampler"
CHECKPOINT = "sonic.storage.checkpoint:os"
# When each run is killed, and what the next one says that it goes on after.
MOMENTS = {
    "in step 2": (f"{SAMPLER} finish_window 2 before", 1),
    "while the checkpoint of step 2 is written": (f"{CHECKPOINT} fsync 1 before", 1),
    "when the checkpoint of step 2 is there": (f"{CHECKPOINT} replace 1 after", 2),
    "while frames are encoded": ("sonic.prepared_clip:decoding quantize 10 before", 3),
    "before the checkpoint is removed": ("sonic.resume:ClipCheckpoint remove 1 before", 3),
}


@pytest.fixture(scope="module")
def tiny() -> sonic.SonicModel:
    """The packaged bundle, loaded."""
    return sonic.load_model("sonic-tiny", threads=1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is slow."""
    monkeypatch.setattr(resume, "SLOW_SECONDS", 0.0)


@pytest.fixture
def folder(tmp_path: Path, portrait: Path, short_wav: Path) -> Path:
    """A folder with inputs."""
    shutil.copy(portrait, tmp_path / "p.png")
    shutil.copy(short_wav, tmp_path / "s.wav")
    return tmp_path


def arguments_of(folder: Path, output: str = "a.mp4", **options: object) -> list[str]:
    given = {
        "bundle": "sonic-tiny", "image": folder / "p.png", "audio": folder / "s.wav",
        "output": folder / output, "steps": STEPS, "resolution": 64, "threads": 1,
    } | options  # fmt: skip
    return ["generate", *(f"--{name}={value}" for name, value in given.items())]


def generate(arguments: list[str]) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result


def killed(moment: str, arguments: list[str]) -> str:
    """Run a command until it is killed; returns what it said."""
    command = [sys.executable, "-c", KILLED, moment, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stderr


def beside(folder: Path) -> set[str]:
    """The hidden files in a folder."""
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


def test_a_clip_that_is_killed_at_any_moment_ends_with_the_same_bytes(folder: Path) -> None:
    generate(arguments_of(folder, "undisturbed.mp4"))
    assert beside(folder) == set(), "a quick clip leaves nothing"
    arguments, kept = arguments_of(folder), None
    for name, (moment, kept_then) in MOMENTS.items():
        said = killed(moment, arguments)
        assert ("going on" in said) == (kept is not None), name
        if kept is not None:
            assert f"going on after step {kept} of {STEPS} ({folder}/.a.mp4.checkpoint)" in said, name
        stored = read_checkpoint(folder / ".a.mp4.checkpoint")
        assert stored is not None and stored.step == kept_then, name
        kept = kept_then
        # Besides the checkpoint: the lock, and what was being written.
        partial = {".checkpoint": "is written" in name, ".mp4": "encoded" in name}
        assert {Path(found).suffix for found in beside(folder) if found.startswith(".sonic-")} == {
            ".lock", *(suffix for suffix, there in partial.items() if there)
        }, name  # fmt: skip
    assert (folder / "a.mp4").is_file(), "the last one was killed after the video had its name"
    (folder / "a.mp4").unlink()
    assert f"going on after step {STEPS} of {STEPS}" in generate(arguments).output
    assert (folder / "a.mp4").read_bytes() == (folder / "undisturbed.mp4").read_bytes()
    assert beside(folder) == set()


def cancelled(model: sonic.SonicModel, calls: int, **clip: Any) -> tuple[list[str], BaseException]:
    """Cancel a clip at its n-th call of the UNet; returns its warnings, and the error."""
    cancel, seen = threading.Event(), 0

    def observe(call: Call) -> None:
        nonlocal seen
        seen += call.submodel == "unet"
        if seen == calls:
            cancel.set()

    with warnings.catch_warnings(record=True) as caught, pytest.raises(sonic.GenerationCancelled) as error:
        warnings.simplefilter("always")
        model.generate(**clip, cancel=cancel, observer=observe)
    return [str(warning.message) for warning in caught], error.value


def arguments_in(folder: Path) -> dict[str, Any]:
    return {
        "image": folder / "p.png", "audio": folder / "s.wav", "checkpoint": folder / "a.checkpoint",
        "seed": 7, **QUICK,
    }  # fmt: skip


@pytest.fixture
def clip(folder: Path) -> dict[str, Any]:
    """The arguments of a clip."""
    return arguments_in(folder)


@pytest.fixture(scope="module")
def stopped_after_a_step(
    tiny: sonic.SonicModel, portrait: Path, short_wav: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with inputs, and the checkpoint of their clip after its first step."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copy(portrait, folder / "p.png")
    shutil.copy(short_wav, folder / "s.wav")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "SLOW_SECONDS", 0.0)
        notes, error = cancelled(tiny, 4, **arguments_in(folder))  # 3 calls a step
    assert notes == [] and "goes on after step 1 of 3" in error.__notes__[0]
    return folder


@pytest.fixture
def stopped(
    stopped_after_a_step: Path, folder: Path, clip: dict[str, Any], impatient: None
) -> dict[str, Any]:
    """The arguments of a clip that was stopped after its first step."""
    shutil.copy(stopped_after_a_step / "a.checkpoint", folder)
    return clip


def test_a_preset_that_reuses_differences_goes_on_with_them(impatient, tiny, clip, folder: Path) -> None:
    manifest = tiny.manifest
    speeds = replace(manifest.speeds, presets=manifest.speeds.presets | {"fastest": REUSING})
    bundle = replace(tiny.engine.bundle, manifest=replace(manifest, speeds=speeds))
    model = sonic.SonicModel(make_engine(bundle, RunOptions(threads=1)))
    clip = clip | {"inference_steps": None, "speed": "fastest"}
    expected = np.asarray(model.generate(**clip | {"checkpoint": None}))
    assert not (folder / "a.checkpoint").exists()

    before = 0
    for calls, kept in ((4, 1), (2, 2), (1, 3)):  # 3, 2, 1 and 1 calls a step
        notes, error = cancelled(model, calls, **clip)
        assert [f"going on after step {before} of 4" in note for note in notes] == [True] * bool(before)
        (note,) = error.__notes__
        assert f"goes on after step {kept} of 4" in note
        stored = read_checkpoint(folder / "a.checkpoint")
        assert stored is not None and stored.step == kept
        assert set(stored.shapes) == {"latents", "image_differences", "audio_differences"}
        before = kept
    with pytest.warns(sonic.SonicWarning, match="going on after step 3 of 4"):
        video = model.generate(**clip)
    np.testing.assert_array_equal(np.asarray(video), expected)
    assert beside(folder) == set() and not (folder / "a.checkpoint").exists()


Change = Callable[[Path, dict[str, Any]], dict[str, Any]]


def another_image(folder: Path, clip: dict[str, Any]) -> dict[str, Any]:
    Image.open(folder / "p.png").rotate(1).save(folder / "q.png")
    return {"image": folder / "q.png"}


def changed_audio(folder: Path, clip: dict[str, Any]) -> dict[str, Any]:
    samples = bytearray((folder / "s.wav").read_bytes())
    samples[3000:3100] = bytes(100)
    (folder / "s.wav").write_bytes(samples)
    return {}


def a_noise(folder: Path, clip: dict[str, Any]) -> dict[str, Any]:
    return {"noise": np.zeros((8, 4, 16, 8), np.float32)}


CHANGES: dict[str, tuple[Change, str]] = {
    "seed": (lambda folder, clip: {"seed": 8}, "another seed (7, now 8): starting over"),
    "steps": (lambda folder, clip: {"inference_steps": 2}, "other steps (3, now 2): starting over"),
    "speed": (
        lambda folder, clip: {"inference_steps": None, "speed": "fast"},
        'another speed ("exact", now "fast"), other steps (3, now none)',
    ),
    "motion": (lambda folder, clip: {"motion_scale": 2.0}, "another motion_scale (1.0, now 2.0)"),
    "image": (another_image, "another image (p.png, now q.png): starting over"),
    "audio": (changed_audio, "another audio (s.wav has changed): starting over"),
    "noise": (a_noise, "another noise (none, now an array): starting over"),
    "frames": (
        lambda folder, clip: {"smooth_motion": True},
        "another smooth_motion (false, now true), which changes no latents: going on after step 1 of 3",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_argument_is_named(case: str, tiny, stopped, folder: Path) -> None:
    change, expected = CHANGES[case]
    (note,), _ = cancelled(tiny, 1, **stopped | change(folder, stopped))
    assert note.startswith(f"the checkpoint {folder}/a.checkpoint was made with ") and expected in note


def test_another_bundle_is_named(tiny, stopped, folder: Path) -> None:
    bundle = shutil.copytree(tiny.engine.bundle.directory, folder / "sonic-other")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["constants"]["sampler"]["seed"] += 1
    write_values(bundle, manifest | {"name": "sonic-other"})
    (note,), _ = cancelled(sonic.load_model(bundle), 1, **stopped)
    assert "another bundle (sonic-tiny, now sonic-other)" in note and note.endswith("starting over")


def test_what_changes_no_bytes_may_differ(tiny, stopped, monkeypatch) -> None:
    (note,), _ = cancelled(sonic.SonicModel(tiny.engine, RunOptions(threads=3)), 1, **stopped)
    assert "going on after step 1" in note
    (note,), _ = cancelled(sonic.SonicModel(tiny.engine, RunOptions(bfloat16=True)), 1, **stopped)
    assert "another bfloat16 (false, now true): starting over" in note
    monkeypatch.setattr(resume, "distribution_version", lambda name: f"{name} 99")
    (note,), _ = cancelled(tiny, 1, **stopped)
    assert "another version of onnxruntime (" in note and "starting over" in note


def test_another_plan_is_noticed(tiny, stopped, monkeypatch) -> None:
    to_json = resume.DenoisingPlan.to_json
    monkeypatch.setattr(resume.DenoisingPlan, "to_json", lambda plan: to_json(plan) | {"frames": 9})
    (note,), _ = cancelled(tiny, 1, **stopped)
    assert "was made with another denoising plan: starting over" in note


def test_a_clip_starts_over_when_it_is_told_to(tiny, stopped, folder: Path) -> None:
    notes, error = cancelled(tiny, 1, **stopped, resume=False)
    assert notes == [] and not hasattr(error, "__notes__")
    assert not (folder / "a.checkpoint").exists()


@pytest.mark.parametrize("content", [b"", b"a text", "truncated", "other arrays"])
def test_a_damaged_checkpoint_starts_over(tiny, stopped, content: bytes | str) -> None:
    path: Path = stopped["checkpoint"]
    if content == "other arrays":
        stored = read_checkpoint(path)
        assert stored is not None
        checkpoint_file.write_checkpoint(path, stored.identity, 1, {})
    else:
        path.write_bytes(path.read_bytes()[:-9] if isinstance(content, str) else content)
    (note,), error = cancelled(tiny, 4, **stopped)
    assert note.startswith(str(path)) and note.endswith(": starting over")
    stored = read_checkpoint(path)
    assert stored is not None and stored.step == 1 and "step 1 of 3" in error.__notes__[0]


def test_a_full_disk_ends_no_clip(impatient, tiny, clip, folder: Path, monkeypatch) -> None:
    expected = np.asarray(tiny.generate(**clip | {"checkpoint": None}))

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_file.os, "fsync", full)
    with pytest.warns(sonic.SonicWarning) as caught:
        video = tiny.generate(**clip)
    (note,) = (str(warning.message) for warning in caught)
    assert "cannot be written (the disk is full): going on without" in note
    np.testing.assert_array_equal(np.asarray(video), expected)
    assert {path.name for path in folder.iterdir()} == {"p.png", "s.wav"}


def test_the_same_output_at_the_same_time_is_one_sentence(folder: Path) -> None:
    output = folder / "a.mp4"
    with ClipCheckpoint(checkpoint_path(output)):
        result = CliRunner().invoke(main, arguments_of(folder))
        assert result.exit_code == 2 and "another process is generating this clip" in result.output
        assert not output.exists()
        generate(arguments_of(folder, "b.mp4", steps=1))  # another output may
    generate(arguments_of(folder, steps=1))
    assert beside(folder) == set()


def test_a_checkpoint_replaces_no_input(tiny, clip, folder: Path) -> None:
    before = (folder / "s.wav").read_bytes()
    with pytest.raises(sonic.InputError, match="would replace the input"):
        tiny.generate(**clip | {"checkpoint": folder / "s.wav"})
    assert (folder / "s.wav").read_bytes() == before
    with pytest.raises(sonic.OutputError, match="folder of the checkpoint should exist"):
        tiny.generate(**clip | {"checkpoint": folder / "missing/a.checkpoint"})


def test_an_interrupted_command_says_how_to_go_on(impatient, folder: Path, monkeypatch) -> None:
    stop = resume.ClipCheckpoint.after_step

    def interrupt(checkpoint: ClipCheckpoint, sampler: Any) -> None:
        stop(checkpoint, sampler)
        if sampler.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(resume.ClipCheckpoint, "after_step", interrupt)
    result = CliRunner().invoke(main, arguments_of(folder))
    assert result.exit_code == 130
    assert f"note: started again with the same arguments, it goes on after step 2 of {STEPS}" in result.output
    assert beside(folder) == {".a.mp4.checkpoint"}
    monkeypatch.undo()
    result = generate([*arguments_of(folder), "--no-resume"])
    assert "going on" not in result.output and beside(folder) == set()


def test_names_of_checkpoints_are_not_too_long(tmp_path: Path) -> None:
    outputs = [tmp_path / f"{letter * 251}.mp4" for letter in "xy"]
    paths = {checkpoint_path(output) for output in outputs}
    assert len(paths) == 2
    for path in paths:
        path.touch()
        ClipCheckpoint(path).close()
    assert checkpoint_path(Path("a.mp4")) == Path(".a.mp4.checkpoint")


@pytest.fixture
def jobs(folder: Path) -> Path:
    """Two jobs."""
    lines = [
        {
            "image": "p.png",
            "audio": "s.wav",
            "output": f"{seed}.mp4",
            "seed": seed,
            "steps": 3,
            "resolution": 64,
        }
        for seed in (1, 2)
    ]
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_batch_that_is_killed_goes_on(jobs: Path, folder: Path) -> None:
    arguments = ["batch", str(jobs), "--bundle=sonic-tiny", "--together=2", "--memory=low"]
    generate(arguments)
    videos = {path.name: path.read_bytes() for path in folder.glob("*.mp4")}
    assert len(videos) == 2 and beside(folder) == set()
    for name in videos:
        (folder / name).unlink()
    (folder / "jobs.report.jsonl").unlink()

    killed(f"{SAMPLER} finish_window 3 before", arguments)  # in step 3 of the first, before the second
    assert ".1.mp4.checkpoint" in beside(folder) and ".2.mp4.checkpoint" not in beside(folder)
    said = killed(
        "sonic.jobs.runner:_Batch _end 1 before", arguments
    )  # the first video is there, but no line
    assert said.count("going on after step 2 of 3") == 1
    assert (folder / "1.mp4").is_file() and not (folder / "jobs.report.jsonl").exists()
    result = generate(arguments)
    assert "going on after step 3 of 3" in result.output
    assert {path.name: path.read_bytes() for path in folder.glob("*.mp4")} == videos
    assert beside(folder) == set()

    written = {name: (folder / name).stat().st_mtime_ns for name in videos}
    generate([*arguments, "--no-resume"])
    assert all((folder / name).stat().st_mtime_ns > written[name] for name in videos)


def test_clips_of_a_group_have_checkpoints_until_they_are_saved(impatient, tiny, clip, folder: Path) -> None:
    paths = [folder / "a.checkpoint", folder / "b.checkpoint"]
    clips = [clip | {"checkpoint": path, "seed": seed} for seed, path in enumerate(paths)]
    for result in tiny.generate_many(clips, together=2):
        assert result.video is not None and result.checkpoint is not None
        stored = read_checkpoint(paths[result.index])
        assert stored is not None and stored.step == STEPS
        with pytest.raises(sonic.OutputError, match="in use"):
            ClipCheckpoint(paths[result.index])
        with result.checkpoint:
            result.checkpoint.remove()
        ClipCheckpoint(paths[result.index]).close()
    assert not any(path.exists() for path in paths) and beside(folder) == set()
