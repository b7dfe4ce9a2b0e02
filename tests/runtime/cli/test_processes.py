"""Commands as processes: signals, logs, telemetry, users without a home."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SONIC = Path(sys.executable).with_name("sonic")
CONVERT = Path(sys.executable).with_name("sonic-convert")
# A clip that takes long enough to be interrupted, wherever the test runs.
LONG = ("--steps=900", "--resolution=64", "--threads=1")


@pytest.fixture
def command(small, portrait: Path, short_wav: Path, tmp_path: Path) -> list[str]:
    """A generation into a folder of its own."""
    (tmp_path / "out").mkdir()
    return [
        str(SONIC), "generate", f"--bundle={small.bundle}", f"--image={portrait}", f"--audio={short_wav}",
        f"--output={tmp_path / 'out' / 'video.mp4'}", f"--dump={tmp_path / 'out' / 'dump'}",
    ]  # fmt: skip


def wait_for(path: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while text not in path.read_text():
        assert process.poll() is None, path.read_text()
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_leave_nothing_behind(command: list[str], tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *LONG], stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        # Standard error is a file here: while a stage takes long, it says how far it is.
        wait_for(log, "denoising: ", process)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    text = log.read_text()
    assert "of 900 after" in text and "no output was written" in text and "Traceback" not in text
    # On a slow machine the clip has a checkpoint by now, which is kept, and said.
    kept = [path.name for path in (tmp_path / "out").iterdir()]
    assert kept == [".video.mp4.checkpoint"] * ("it goes on after step" in text)


def test_a_signal_that_is_ignored_stays_ignored(command: list[str], tmp_path: Path) -> None:
    """As `nohup` does it."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--steps=40", "--resolution=64", "--threads=1"],
            stdout=file,
            stderr=file,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        )
        wait_for(log, "speech: ", process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 0, log.read_text()
    assert (tmp_path / "out/video.mp4").stat().st_size > 1000


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "arguments",
    [
        [sys.executable, "-c", "import sonic; sonic.load_model('sonic-tiny', check_digests=False)"],
        [sys.executable, "-c", "import sonic_convert.export.stages, sonic_calibration.graphs.stored_graph"],
        [sys.executable, "-c", "import sonic_training.mouth, onnxruntime"],
        [str(SONIC), "--help"],
        [str(SONIC), "plan", "sonic-tiny"],
        [str(CONVERT), "--help"],
    ],
    ids=lambda arguments: " ".join(Path(part).name for part in arguments)[:40],
)
def test_nothing_is_written_below_home(arguments: list[str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"HOME": str(home)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert files_below(home) == []


def test_a_generation_writes_nothing_below_home(command: list[str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"HOME": str(home)}
    done = subprocess.run(
        [*command, "--steps=1", "--resolution=64"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert files_below(tmp_path / "home") == [] and (tmp_path / "out/video.mp4").is_file()


def test_a_user_who_wants_telemetry_has_it() -> None:
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "0"}
    code = "import sonic, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr


def test_a_user_without_a_home(tmp_path: Path) -> None:
    """As `docker --user 12345`: no HOME, and no entry in the list of users."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = (
        "import os; os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "from sonic.bundle.store import search_path; print(*search_path(), sep='\\n')"
    )
    environment = {"PATH": os.environ["PATH"], "ORT_DISABLE_TELEMETRY": "1"}
    # The interpreter has read its modules as root; a folder that only root may enter is no matter here.
    code = "import sonic.model\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    places = done.stdout.splitlines()
    assert places[0] == "bundles" and not any("~" in place for place in places)
