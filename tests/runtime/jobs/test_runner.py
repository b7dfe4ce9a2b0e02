"""Batches: the bytes of single runs, failures that stop nothing, and runs that go on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import sonic
from sonic.cli.main import main
from sonic.jobs import runner as batch
from sonic.jobs.journal import read_journal
from sonic.options import RunOptions

FAST = {"steps": 1, "resolution": 64}


@pytest.fixture
def folder(tmp_path: Path, portrait: Path, short_wav: Path) -> Path:
    """Inputs, and three jobs that can be done."""
    (tmp_path / "portrait.png").write_bytes(portrait.read_bytes())
    (tmp_path / "short.wav").write_bytes(short_wav.read_bytes())
    write(tmp_path, [job("a", seed=1), job("b", seed=2, steps=2), job("c", seed=3, smooth_motion=True)])
    return tmp_path


def job(name: str, **options: Any) -> dict[str, Any]:
    paths = {"image": "portrait.png", "audio": "short.wav", "output": f"{name}.mp4"}
    return paths | FAST | options


def write(folder: Path, jobs: list[Any]) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    return path


def run(folder: Path, bundle: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["batch", str(folder / "jobs.jsonl"), f"--bundle={bundle}", *options])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.mp4"))}


@pytest.mark.parametrize("memory", ["low", "balanced", "fast"])
def test_clips_of_a_batch_are_those_of_single_runs(memory: str, model, portrait, short_wav, long_mp3) -> None:
    alone = model  # in the default mode: no mode changes a byte
    fast = {"inference_steps": 2, "min_resolution": 64}
    clips = [
        {"image": portrait, "audio": long_mp3, "seed": 1, **fast},
        {"image": portrait, "audio": short_wav, "seed": 2, **fast, "inference_steps": 1},
        {"image": portrait, "audio": short_wav, "seed": 3, "min_resolution": 64, "speed": "fastest"},
    ]
    together = sonic.SonicModel(model.engine, RunOptions(memory=memory))
    results = list(together.generate_many(iter(clips), together=2))
    assert [result.index for result in results] == [0, 1, 2]
    for clip, result in zip(clips, results, strict=True):
        assert result.error is None
        video = alone.generate(**clip)
        np.testing.assert_array_equal(np.asarray(result.video), np.asarray(video))
        assert result.video.sound is not None


def test_an_error_belongs_to_its_clip(model, portrait, short_wav, tmp_path: Path) -> None:
    good = {"image": portrait, "audio": short_wav, "inference_steps": 1, "min_resolution": 64}
    bad = [good | {"image": tmp_path / "missing.png"}, good | {"stepz": 3}, {"image": portrait}]
    results = list(model.generate_many([bad[0], good, bad[1], bad[2]], together=4))
    assert [result.video is None for result in results] == [True, False, True, True]
    texts = [str(result.error) for result in results]
    assert "missing.png" in texts[0] and "'stepz' is no option" in texts[2] and "'audio'" in texts[3]
    assert list(model.generate_many([])) == []
    with pytest.raises(sonic.InputError, match="at least 1"):
        list(model.generate_many([good], together=0))


def test_a_dump_of_a_clip_that_fails_does_not_appear(model, portrait, tmp_path: Path) -> None:
    clip = {"image": portrait, "audio": tmp_path / "missing.wav", "dump": tmp_path / "dump"}
    (result,) = model.generate_many([clip])
    assert result.video is None and not (tmp_path / "dump").exists()


def test_a_batch_goes_on_after_a_job_that_fails(small, folder: Path) -> None:
    write(folder, [job("a"), job("b", audio="missing.wav"), job("c", duration=9)])
    result = run(folder, small.bundle)
    assert result.exit_code == 1, result.output
    assert "1 of 3 jobs done" in result.output and "missing.wav" in result.output
    assert list(bytes_of(folder)) == ["a.mp4"]
    reports = read_journal(folder / "jobs.report.jsonl")
    assert {Path(r.output).name: r.status for r in reports.values()} == {
        "a.mp4": "done", "b.mp4": "failed", "c.mp4": "failed",
    }  # fmt: skip


def test_a_stopped_batch_goes_on_and_ends_with_the_same_bytes(small, folder: Path, monkeypatch) -> None:
    assert run(folder, small.bundle).exit_code == 0
    whole = bytes_of(folder)
    for name in whole:
        (folder / name).unlink()
    (folder / "jobs.report.jsonl").unlink()

    save = batch.save_video

    def stop(video: sonic.Video, output: Path, **options: Any) -> None:
        if output.name == "b.mp4":
            raise KeyboardInterrupt
        save(video, output, **options)

    monkeypatch.setattr(batch, "save_video", stop)
    assert run(folder, small.bundle, "--together=1").exit_code == 130
    assert "a.mp4" in bytes_of(folder) and "b.mp4" not in bytes_of(folder)
    monkeypatch.undo()
    with open(folder / "jobs.report.jsonl", "a") as file:
        file.write('{"output": "cut sh')  # as a kill in the middle of a line leaves it
    written = (folder / "a.mp4").stat().st_mtime_ns
    assert run(folder, small.bundle, "--together=2").exit_code == 0
    assert bytes_of(folder) == whole
    assert (folder / "a.mp4").stat().st_mtime_ns == written  # not made again
    assert len(read_journal(folder / "jobs.report.jsonl")) == 3


@pytest.mark.parametrize("change", ["seed", "input", "output"])
def test_a_job_whose_parts_changed_is_done_again(small, folder: Path, change: str) -> None:
    write(folder, [job("a", seed=1)])
    assert run(folder, small.bundle).exit_code == 0
    before = bytes_of(folder)["a.mp4"]
    if change == "seed":
        write(folder, [job("a", seed=2)])
    elif change == "input":
        samples = bytearray((folder / "short.wav").read_bytes())
        samples[2000:6000] = bytes(4000)
        (folder / "short.wav").write_bytes(samples)
    else:
        (folder / "a.mp4").write_bytes(b"damaged")
    assert run(folder, small.bundle).exit_code == 0
    after = bytes_of(folder)["a.mp4"]
    assert (after == before) == (change == "output")


BAD_LINES = {
    "no JSON": ("{", "line 2: this is no JSON object"),
    "a list": ("[1]", "should be a JSON object"),
    "an unknown key": (job("b") | {"stepz": 3}, "'stepz' is unknown"),
    "no image": ({"audio": "short.wav", "output": "b.mp4"}, "'image' should be the path"),
    "a wrong type": (job("b", seed="7"), "'seed' is '7', but should be a whole number"),
    "a flag that is none": (job("b", smooth_motion=1), "true or false"),
    "a value out of range": (job("b", steps=0), "line 2: steps is 0"),
    "an output twice": (job("a"), "is that of line 1 too"),
    "no video": (job("b", output="b.avi"), ".mp4"),
    "no folder": (job("b", output="nowhere/b.mp4"), "folder"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_one_sentence_before_anything_starts(case: str, small, folder: Path) -> None:
    line, expected = BAD_LINES[case]
    path = write(folder, [job("a")])
    with open(path, "a") as file:
        file.write(line if isinstance(line, str) else json.dumps(line))
    before = sorted(folder.iterdir())
    result = run(folder, small.bundle)
    assert result.exit_code == 2, (result.output, result.exception)
    message = next(line for line in result.output.splitlines() if line.startswith("error: "))
    assert expected in message and "jobs.jsonl" in message or "b." in message
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_no_jobs_is_one_sentence(small, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "jobs.jsonl").write_text(content)
    result = run(tmp_path, small.bundle)
    assert result.exit_code == 2 and "jobs.jsonl" in result.output


def test_a_byte_order_mark_is_no_part_of_the_first_job(small, folder: Path) -> None:
    """Notepad and PowerShell begin UTF-8 files with one."""
    path = write(folder, [job("a")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert run(folder, small.bundle).exit_code == 0
    assert list(bytes_of(folder)) == ["a.mp4"]
