"""An output never replaces an input: links, batch lines and the jobs file itself included."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sonic.cli.main import main
from sonic.errors import InputError
from sonic.media.checks import check_not_an_input


@pytest.fixture
def folder(tmp_path: Path, portrait: Path, short_wav: Path) -> Path:
    """Inputs whose names end in .mp4, as a recording out of a camera does."""
    (tmp_path / "p.png").write_bytes(portrait.read_bytes())
    (tmp_path / "speech.mp4").write_bytes(short_wav.read_bytes())
    os.link(tmp_path / "speech.mp4", tmp_path / "hard.mp4")
    (tmp_path / "soft.mp4").symlink_to("speech.mp4")
    (tmp_path / "sub").mkdir()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def generate(folder: Path, bundle: Path, **options: object) -> Result:
    given = {
        "bundle": bundle,
        "image": "p.png",
        "audio": "speech.mp4",
        "steps": 1,
        "resolution": 64,
    } | options
    arguments = [f"--{name}={value}" for name, value in given.items()]
    os.chdir(folder)
    return CliRunner().invoke(main, ["generate", *arguments])


@pytest.mark.parametrize(
    "output", ["speech.mp4", "hard.mp4", "soft.mp4", "sub/../speech.mp4", "./speech.mp4"]
)
def test_the_recording_is_kept(small, folder: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    result = generate(folder, small.bundle, output=output)
    assert result.exit_code == 2 and "would replace the input speech.mp4" in result.output
    assert contents(folder) == before


def test_the_noise_is_kept(small, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    np.save(folder / "noise.npy", np.zeros((8, 4, 16, 8), np.float32))
    (folder / "noise.npy").rename(folder / "noise.mp4")
    before = contents(folder)
    result = generate(folder, small.bundle, noise="noise.mp4", output="noise.mp4")
    assert result.exit_code == 2 and "would replace the input noise.mp4" in result.output
    assert contents(folder) == before


@pytest.mark.parametrize("output", ["speech.mp4", "hard.mp4", "soft.mp4"])
@pytest.mark.parametrize("line", [1, 2])
def test_no_line_of_a_batch_replaces_an_input_of_any(small, folder: Path, output: str, line: int) -> None:
    jobs = [{"image": "p.png", "audio": "speech.mp4", "output": f"{n}.mp4", "steps": 1} for n in (1, 2)]
    jobs[line - 1]["output"] = output
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    before = contents(folder)
    result = CliRunner().invoke(main, ["batch", str(folder / "jobs.jsonl"), f"--bundle={small.bundle}"])
    assert result.exit_code == 2 and "would replace the input" in result.output
    assert contents(folder) == before


def test_files_that_do_not_exist_yet_are_compared_by_their_paths(tmp_path: Path) -> None:
    check_not_an_input(tmp_path / "new.mp4", [tmp_path / "other.mp4"])
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InputError, match="choose another name"):
        check_not_an_input(tmp_path / "link/new.mp4", [tmp_path / "new.mp4"])


def test_a_dump_keeps_the_noise(small, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dump has a file of that name."""
    monkeypatch.chdir(folder)
    np.save(folder / "latents.npy", np.zeros((8, 4, 16, 8), np.float32))
    before = contents(folder)
    result = generate(folder, small.bundle, noise="latents.npy", dump=".", output="video.mp4")
    assert result.exit_code == 2 and "would replace the input latents.npy" in result.output
    assert contents(folder) == before


@pytest.mark.parametrize("report", ["jobs.jsonl", "speech.mp4", "hard.mp4", "p.png", "1.mp4"])
def test_a_report_replaces_no_file_of_the_batch(small, folder: Path, report: str) -> None:
    job = {"image": "p.png", "audio": "speech.mp4", "output": "1.mp4", "steps": 1}
    (folder / "jobs.jsonl").write_text(json.dumps(job))
    before = contents(folder)
    arguments = ["batch", str(folder / "jobs.jsonl"), f"--bundle={small.bundle}"]
    result = CliRunner().invoke(main, [*arguments, f"--report={folder / report}"])
    assert result.exit_code == 2 and "would replace the input" in result.output
    assert contents(folder) == before


def test_two_jobs_have_no_output_in_common(small, folder: Path) -> None:
    (folder / "link").symlink_to("sub", target_is_directory=True)
    outputs = ["sub/1.mp4", "link/1.mp4"]
    jobs = [{"image": "p.png", "audio": "speech.mp4", "output": output} for output in outputs]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    result = CliRunner().invoke(main, ["batch", str(folder / "jobs.jsonl"), f"--bundle={small.bundle}"])
    assert result.exit_code == 2 and "is that of line 1 too" in result.output
