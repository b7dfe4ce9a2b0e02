"""The systemd unit: that it is well-formed, how much it leaves open, and that the command runs within it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from image.bases import ROOT

pytestmark = pytest.mark.image

UNIT = ROOT / "deploy/systemd/sonic-batch@.service"
PROGRAM = "/opt/sonic/venv/bin/sonic"
ASSETS = ROOT / "convert/sonic_convert/assets"
LARGEST_EXPOSURE = 10  # tenths; of 100
# PR_SET_MDWE with PR_MDWE_REFUSE_EXEC_GAIN: what MemoryDenyWriteExecute=yes does on Linux 6.3 and later.
WITHOUT_NEW_MACHINE_CODE = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
    sys.exit(77)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A folder with a jobs file of one short clip."""
    for name in ("portrait.png", "speech.wav"):
        shutil.copy(ASSETS / name, tmp_path / name)
    job = {"image": "portrait.png", "audio": "speech.wav", "output": "video.mp4"}
    line = json.dumps(job | {"duration": 0.16, "resolution": 64, "steps": 1})
    (tmp_path / "jobs.jsonl").write_text(line + "\n")
    return tmp_path


def test_unit_is_well_formed(tmp_path: Path) -> None:
    """Nothing is unknown, misspelt or without effect; the program, which is not installed here, aside."""
    text = UNIT.read_text()
    assert f"ExecStart={PROGRAM} " in text
    instance = tmp_path / "sonic-batch@one.service"
    instance.write_text(text.replace(PROGRAM, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", instance], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_unit_leaves_little_open(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    done = subprocess.run([*command, f"--threshold={LARGEST_EXPOSURE}", UNIT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():
        print("\n" + next(line for line in done.stdout.splitlines() if "Overall exposure" in line))


def test_batch_needs_no_other_system_calls(jobs: Path) -> None:
    """A batch makes no call that the unit's filter refuses."""
    if shutil.which("strace") is None:
        pytest.fail("strace is missing; install it")
    trace = jobs / "trace"
    command = ["strace", "-f", "-o", str(trace), sys.executable, "-m", "sonic", "batch", "jobs.jsonl"]
    done = subprocess.run([*command, "--bundle", "sonic-tiny"], cwd=jobs, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    assert "openat" in made
    assert made - allowed_calls() == set()


def test_batch_makes_no_machine_code(jobs: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_NEW_MACHINE_CODE, sys.executable, "-m", "sonic", "batch"]
    done = subprocess.run(
        [*command, "jobs.jsonl", "--bundle", "sonic-tiny"], cwd=jobs, capture_output=True, text=True
    )
    if done.returncode == 77:
        pytest.skip("Linux 6.3 or newer is needed")
    assert done.returncode == 0, done.stderr
    assert (jobs / "video.mp4").is_file()


def allowed_calls() -> set[str]:
    """The calls that the unit's filters let through, in their order."""
    allowed: set[str] = set()
    for filters in re.findall(r"^SystemCallFilter=(.*)", UNIT.read_text(), re.MULTILINE):
        named = {call for name in filters.removeprefix("~").split() for call in calls_of(name)}
        allowed = allowed - named if filters.startswith("~") else allowed | named
    return allowed


def calls_of(name: str) -> set[str]:
    """The calls of a group, such as "@system-service"; of any other name, itself."""
    if not name.startswith("@"):
        return {name}
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    )
    lines = (line.strip() for line in done.stdout.splitlines()[1:])
    return {call for line in lines if line and not line.startswith("#") for call in calls_of(line)}
