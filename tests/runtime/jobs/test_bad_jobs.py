"""One bad job fails alone, whatever is bad about it; and each video is there as soon as it is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import sonic
from sonic.cli.main import main
from sonic.engines.base import Engine
from sonic.jobs.journal import JobReport, append_to_journal, read_journal

ASSETS = Path(__file__).parents[3] / "convert/sonic_convert/assets"
FAST = {"speed": "fastest", "resolution": 64, "duration": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good inputs, and some that are none."""
    for name in ("portrait.png", "speech.wav"):
        (tmp_path / name).write_bytes((ASSETS / name).read_bytes())
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    np.save(tmp_path / "wrong.npy", np.zeros(3, np.float32))
    return tmp_path


def job(name: str, **values: Any) -> dict[str, Any]:
    return {"image": "portrait.png", "audio": "speech.wav", "output": f"{name}.mp4", **FAST} | values


def run(folder: Path, jobs: list[dict[str, Any]], *options: str) -> Result:
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in jobs))
    return CliRunner().invoke(main, ["batch", str(path), "--bundle=sonic-tiny", *options])


BAD = {
    "a pipe for a portrait": {"image": "pipe"},
    "a pipe for a recording": {"audio": "pipe"},
    "a pipe for noise": {"noise": "pipe"},
    "a device for a portrait": {"image": "zeros"},
    "a device for a recording": {"audio": "zeros"},
    "a device for noise": {"noise": "zeros"},
    "a link to itself": {"image": "loop"},
    "a folder for a portrait": {"image": "."},
    "a null byte in a portrait's path": {"image": "a\0.png"},
    "a null byte in an output's path": {"output": "a\0.mp4"},
    "half of a pair in a recording's path": {"audio": "\ud800.wav"},
    "half of a pair in an output's path": {"output": "\udfff\ud800.mp4"},
    "a path of 5,000 letters": {"image": "x" * 5000},
    "noise of another shape": {"noise": "wrong.npy"},
    "a recording for a portrait": {"image": "speech.wav"},
    "a portrait for a recording": {"audio": "portrait.png"},
}


def test_one_bad_job_fails_alone(folder: Path) -> None:
    jobs = [job(f"bad{number}", **values) for number, values in enumerate(BAD.values())]
    result = run(folder, [jobs[0], job("first"), *jobs[1:], job("last")])
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output and f"2 of {len(BAD) + 2} jobs done" in result.output
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["first.mp4", "last.mp4"]
    reports = read_journal(folder / "jobs.report.jsonl").values()
    failed = [report.error for report in reports if report.status == "failed"]
    assert len(failed) == len(BAD) and all("\n" not in error for error in failed)


def breaking(model: sonic.SonicModel, error: Exception, submodel: str, at: str) -> sonic.SonicModel:
    """A model in whose second clip of a group a submodel raises an error that nobody foresaw."""

    class Breaking:
        bundle = model.engine.bundle
        opened = 0

        def open(self, name: str, parallelism: Any = None) -> Any:
            session = model.engine.open(name, parallelism)
            if name == submodel:
                original = session.run

                def run(inputs: Any, **tags: Any) -> Any:
                    Breaking.opened += 1
                    if Breaking.opened == 2 or at == "always":
                        raise error
                    return original(inputs, **tags)

                session.run = run
            return session

    engine: Engine = Breaking()
    return sonic.SonicModel(engine)


@pytest.mark.parametrize("submodel", ["image_encoder", "unet", "vae_decoder"])
def test_errors_that_nobody_foresaw_stay_with_their_clip(submodel: str) -> None:
    model = breaking(sonic.load_model("sonic-tiny"), RuntimeError("no idea"), submodel, "second")
    clip = {"image": ASSETS / "portrait.png", "audio": ASSETS / "speech.wav", "duration": 0.5}
    clips = [clip | {"seed": seed, "min_resolution": 64, "speed": "fastest"} for seed in range(3)]
    results = list(model.generate_many(clips, together=3))
    errors = [str(result.error) for result in results if result.error is not None]
    if submodel == "unet":  # each was tried again alone, and no call fails any more
        assert errors == []
    else:
        assert errors == ["the clip cannot be generated (RuntimeError: no idea)"]
    model = breaking(sonic.load_model("sonic-tiny"), MemoryError(), submodel, "always")
    results = list(model.generate_many(clips[:2], together=2))
    assert all("not enough memory" in str(result.error) for result in results)


def test_each_video_is_there_before_the_next_is_denoised() -> None:
    """The first clip of a group is given back while the UNet has calls left for the others."""
    model = sonic.load_model("sonic-tiny", threads=1, memory="low")
    got_first = threading.Event()
    left: list[bool] = []

    class Slow:
        bundle = model.engine.bundle

        def open(self, name: str, parallelism: Any = None) -> Any:
            session = model.engine.open(name, parallelism)
            original = session.run
            calls = 0

            def run(inputs: Any, **tags: Any) -> Any:
                nonlocal calls
                calls += 1
                if name == "unet" and calls == 13:  # of the second clip: `steps=2` has six calls
                    left.append(got_first.wait(60))
                return original(inputs, **tags)

            session.run = run
            return session

    clip = {"image": ASSETS / "portrait.png", "audio": ASSETS / "speech.wav", "duration": 0.5}
    clips = [clip | {"seed": seed, "min_resolution": 64, "inference_steps": 2} for seed in range(4)]
    run = sonic.options.RunOptions(memory="low", threads=1)
    for result in sonic.SonicModel(Slow(), run).generate_many(clips, together=4):
        assert result.error is None
        got_first.set()
    assert left == [True]


def test_a_batch_that_is_killed_early_has_its_first_video(folder: Path) -> None:
    jobs = [job(str(number), seed=number, speed="exact", duration=2) for number in range(4)]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in jobs))
    command = [sys.executable, "-m", "sonic", "batch", str(folder / "jobs.jsonl"), "--bundle=sonic-tiny"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    report = folder / "jobs.report.jsonl"
    while not report.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = [one for one in read_journal(report).values() if one.status == "done"]
    assert 1 <= len(done) < 4 and (folder / "0.mp4").is_file()


def test_a_report_that_holds_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    good = JobReport("/a.mp4", "done", frames=3)
    lines = [
        "[]",
        '{"output": []}',
        '{"output": 5, "status": "done"}',
        "[" * 10_000,
        '{"frames": NaN}',
        "\xff",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="latin-1")
    append_to_journal(path, good)
    assert read_journal(path) == {"/a.mp4": good}


def test_many_outputs_are_checked_in_no_time(folder: Path) -> None:
    """5,000 jobs: comparing each output with each input would take 50 million look-ups."""
    from sonic.jobs.job import read_jobs

    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(job(str(number))) + "\n" for number in range(5_000)))
    assert len(read_jobs(path)) == 5_000
