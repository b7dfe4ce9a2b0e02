"""Two processes never write one thing, and what a killed one left is removed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sonic.errors import OutputError
from sonic.storage.claims import claimed
from sonic.storage.files import replacing_folder

WRITER = """
import sys, time
from pathlib import Path
from sonic.storage.claims import claimed
from sonic.storage.files import replacing_folder
path = Path(sys.argv[1])
with claimed(path, "the bundle"), replacing_folder(path) as partial:
    (partial / "weights").write_bytes(bytes(1000))
    print(partial, flush=True)
    time.sleep(600)
"""


def test_the_other_process_is_named_and_what_it_leaves_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        partial = Path(process.stdout.readline().strip())
        with (
            pytest.raises(
                OutputError, match=f"bundle: the bundle is being written by process {process.pid} "
            ),
            claimed(target, "the bundle"),
        ):
            pass
        with claimed(tmp_path / "another", "the bundle"):  # beside it, which removes nothing that is used
            assert (partial / "weights").is_file()
        process.send_signal(signal.SIGKILL)
    assert (partial / "weights").is_file()
    with claimed(tmp_path / "another", "the bundle"):
        assert not partial.exists()
    with claimed(target, "the bundle"), replacing_folder(target) as again:
        (again / "weights").write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_claim_may_be_repeated_inside_but_not_by_another_thread(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            with claimed(tmp_path / "bundle", "the bundle"):
                pass
        except OutputError as error:
            refused.append(str(error))

    (tmp_path / "folder").symlink_to(tmp_path)
    with claimed(tmp_path / "bundle", "the bundle"):
        with claimed(tmp_path / "folder" / "bundle", "the bundle"):  # the same, by another path
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "is being written by process" in refused[0]
    other()
    assert len(refused) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write .*bundle"), claimed(tmp_path / "file/bundle", "it"):
        pass


def test_a_folder_takes_the_place_of_another_or_stays_away(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for text in ("first", "second"):
        with replacing_folder(target) as partial:
            (partial / text).touch()
    with pytest.raises(RuntimeError), replacing_folder(target) as partial:
        (partial / "third").touch()
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["second"] and list(tmp_path.iterdir()) == [target]
