"""Files that a process owns while it lives: two cannot have one, and nobody's are removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sonic.storage.files import replacing_file
from sonic.storage.owned import OwnedFile, owned_name, remove_abandoned

OWNER = """
import sys, time
from pathlib import Path
from sonic.storage.owned import OwnedFile, owned_name
with OwnedFile(owned_name(Path(sys.argv[1]))) as file:
    file.path.write_bytes(bytes(1000))
    print(file.path, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "a.mp4")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        assert path.parent == tmp_path and path.suffix == ".mp4"
        assert remove_abandoned(tmp_path) == [] and path.stat().st_size == 1000
        with pytest.raises(BlockingIOError, match="another process"):
            OwnedFile(path)
        process.send_signal(signal.SIGKILL)
    assert path.is_file()
    assert remove_abandoned(tmp_path) == [path] and list(tmp_path.iterdir()) == []


def test_a_file_of_a_dead_process_is_taken_over_empty(tmp_path: Path) -> None:
    path = owned_name(tmp_path / "a.lock", "0123456789abcdef")
    path.write_text("left")
    with OwnedFile(path):
        assert path.read_bytes() == b""
        with pytest.raises(BlockingIOError):
            OwnedFile(path)
    assert not path.exists()
    OwnedFile(path).close()


def test_what_may_be_somebody_elses_stays(tmp_path: Path) -> None:
    names = [
        ".sonic",
        ".sonic-0123.mp4",
        "sonic-0123456789abcdef.mp4",
        ".sonic-0123456789ABCDEF.mp4",
        "a.mp4",
    ]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".sonic-0000000000000000.mp4").mkdir()
    (tmp_path / ".sonic-0000000000000003.folder").touch()
    (tmp_path / ".sonic-0000000000000004.folder").symlink_to(tmp_path)
    (tmp_path / ".sonic-0000000000000001.mp4").symlink_to(tmp_path / "a.mp4")
    os.mkfifo(tmp_path / ".sonic-0000000000000002.mp4")
    before = sorted(tmp_path.iterdir())
    assert remove_abandoned(tmp_path) == [] and sorted(tmp_path.iterdir()) == before
    assert remove_abandoned(tmp_path / "missing") == []


def test_a_file_that_is_being_replaced_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with replacing_file(path) as partial:
        partial.write_text("new")
        assert remove_abandoned(tmp_path) == []
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RuntimeError), replacing_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
