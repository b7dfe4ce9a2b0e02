"""Only regular files inside a folder are opened, and a file that changes is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sonic.bundle.files import FileState, digest_of, list_files, opened, read_all
from sonic.errors import BundleError


def test_files_are_listed_and_read(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"content")
    (tmp_path / "d").touch()
    for ignored in (".cache/x", ".git/config", "a/.DS_Store", ".gitattributes", ".gitignore"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).symlink_to("/dev/zero")
    assert list_files(tmp_path) == {"a/b/c", "d"}
    with opened(tmp_path, "a/b/c") as file:
        assert read_all(file.descriptor, 7) == b"content" and read_all(file.descriptor, 3) == b"cont"
        assert digest_of(file.descriptor).startswith("ed7002b439e9ac845f22357d822bac14")
        assert sorted(os.listdir(file.folder)) == ["c"]
    with pytest.raises(OSError):
        os.fstat(file.descriptor)


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/a").touch()
    (tmp_path / "link").symlink_to("bundle")
    assert list_files(tmp_path / "link") == {"a"}
    with opened(tmp_path / "link", "a"):
        pass


@pytest.mark.parametrize(
    "path", ["link", "folder-link/a", "pipe", "folder", "absent", "absent/a", "a/a", "a\0b"]
)
def test_what_is_not_opened(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").touch()
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "folder-link").symlink_to("folder")
    os.mkfifo(tmp_path / "pipe")
    again = "cannot be opened .*; copy or convert the bundle again"
    with pytest.raises(BundleError, match=again), opened(tmp_path, path):
        pass


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonic.bundle.files._MOST_FILES", 3)
    for name in "abc":
        (tmp_path / name).touch()
    assert len(list_files(tmp_path)) == 3
    (tmp_path / "d").mkdir()
    with pytest.raises(BundleError, match="more than 3 files"):
        list_files(tmp_path)


def wait_for_the_clock(folder: Path, changed_ns: int) -> None:
    """Wait until a change gets another time: file systems count in ticks of milliseconds."""
    while True:
        (folder / "clock").write_bytes(b"")
        if (folder / "clock").stat().st_ctime_ns > changed_ns:
            return


def test_states_tell_every_change(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def state() -> FileState:
        with opened(tmp_path, "a") as file:
            return FileState.of(file.descriptor)

    def write_in_place() -> None:
        before = path.stat()
        with path.open("r+b") as file:
            file.write(b"X")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if it had not been written to

    def replace() -> None:
        (tmp_path / "b").write_bytes(path.read_bytes())
        os.replace(tmp_path / "b", path)

    def away_and_back() -> None:
        path.rename(tmp_path / "b")
        (tmp_path / "b").rename(path)

    path.write_bytes(b"content")
    assert state() == state()
    for change in (write_in_place, replace, away_and_back, lambda: os.truncate(path, 3)):
        before = state()
        wait_for_the_clock(tmp_path, before.changed_ns)
        change()
        assert state() != before, change
