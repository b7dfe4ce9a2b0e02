"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sonic.errors import OutputError
from sonic.storage.files import replacing, whole_or_nothing, write_json


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.suffix == ".json" and partial.name.startswith(".")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").touch()
    with replacing(path) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert [entry.name for entry in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("folder", [False, True])
def test_an_error_changes_nothing(tmp_path: Path, error: type[BaseException], folder: bool) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as partial:
        if folder:
            partial.mkdir()
            (partial / "half").touch()
        else:
            partial.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"cannot write .*missing/a.json \(No such file.*\); choose another"
    ):
        write_json(tmp_path / "missing/a.json", {})
    expected = r"a.mp4: the video cannot be written \(the disk is full\)"
    with pytest.raises(OutputError, match=expected), replacing(tmp_path / "a.mp4", "the video"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_name_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".npy")
    with replacing(path) as partial:
        partial.touch()
    assert path.is_file()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    path, partial = tmp_path / "stage", tmp_path / ".stage.partial"
    partial.mkdir()
    (partial / "half").touch()
    with whole_or_nothing(path, partial) as folder:
        assert folder == partial and not folder.exists()
        folder.mkdir()
    assert [entry.name for entry in tmp_path.iterdir()] == ["stage"] and not any(path.iterdir())
