"""Bundles as single files: equal bytes, whole or absent, and nothing that the manifest does not say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from security.hostile import HostileInput
from security.hostile_archives import BUNDLE, ROWS

from sonic.archives.install import install
from sonic.archives.pack import pack
from sonic.archives.unpack import unpack
from sonic.bundle.store import find_bundle, open_bundle, sha256_of
from sonic.cli.main import main
from sonic.errors import BundleError, InputError, OutputError


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "tiny-x86_64.tar.zst"
    pack(BUNDLE, path)
    return path


def test_the_same_bundle_gives_the_same_bytes_and_comes_back(archive: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BUNDLE, tmp_path / "another-name", copy_function=shutil.copyfile))
    for path in copy.rglob("*"):
        os.utime(path)
    pack(copy, tmp_path / "again.tar.zst")
    assert (tmp_path / "again.tar.zst").read_bytes() == archive.read_bytes()
    manifest = unpack(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(BUNDLE)
    assert open_bundle(tmp_path / "out").manifest == manifest


def test_other_programs_read_it(archive: Path, tmp_path: Path) -> None:
    if shutil.which("tar") is None or shutil.which("zstd") is None:
        pytest.skip("tar or zstd is not installed")
    subprocess.run(["tar", "--zstd", "-xf", str(archive)], cwd=tmp_path, check=True)
    assert contents(tmp_path / BUNDLE.name) == contents(BUNDLE)


def test_the_time_in_it_can_be_chosen(archive: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    pack(BUNDLE, tmp_path / "dated.tar.zst")
    assert sha256_of(tmp_path / "dated.tar.zst") != sha256_of(archive)
    unpack(tmp_path / "dated.tar.zst", tmp_path / "out")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        pack(BUNDLE, tmp_path / "dated.tar.zst")


@pytest.mark.parametrize("damage", ["changed", "longer", "missing"])
def test_a_damaged_bundle_is_not_packed(tmp_path: Path, damage: str) -> None:
    copy = Path(shutil.copytree(BUNDLE, tmp_path / "copy"))
    path = copy / "audio2token/model.onnx"
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[100] ^= 1
        path.write_bytes(data if damage == "changed" else data + b"x")
    with pytest.raises(BundleError, match="audio2token/model.onnx"):
        pack(copy, tmp_path / "archive.tar.zst")
    assert list(tmp_path.iterdir()) == [copy]


def test_where_an_archive_may_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="should end in .tar.zst"):
        pack(BUNDLE, tmp_path / "archive.zip")
    copy = Path(shutil.copytree(BUNDLE, tmp_path / "copy"))
    with pytest.raises(OutputError, match="inside the bundle"):
        pack(copy, copy / "archive.tar.zst")


def test_what_is_there_stays(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    with pytest.raises(OutputError, match="is no bundle"):
        unpack(archive, tmp_path / "mine", overwrite=True)
    unpack(archive, tmp_path / "bundle")
    with pytest.raises(OutputError, match="replace it with --overwrite"):
        unpack(archive, tmp_path / "bundle")
    (tmp_path / "bundle/mel_filters.npy").write_bytes(b"damaged")
    unpack(archive, tmp_path / "bundle", overwrite=True)
    open_bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match="no such file"):
        unpack(tmp_path / "missing.tar.zst", tmp_path / "out")


def test_a_release_is_installed_where_it_is_found(archive: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("SONIC_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="SHA256SUMS is missing"):
        install(archive)
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{'0' * 64}  other.tar.zst\n")
    with pytest.raises(InputError, match="holds no checksum of tiny-x86_64.tar.zst"):
        install(archive, sums)
    sums.write_text(f"{'0' * 64}  {archive.name}\n")
    with pytest.raises(BundleError, match="has another checksum"):
        install(archive, sums)
    assert not (tmp_path / "data").exists()
    sums.write_text(f"{'0' * 64}  other.tar.zst\n{sha256_of(archive)}  {archive.name}\n")
    folder = install(archive, sums)
    assert find_bundle("sonic-tiny").resolve() == folder == tmp_path / "data/sonic/sonic-tiny"
    monkeypatch.setenv("SONIC_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(
        main, ["bundle", "fetch-from", str(archive), "--sums", str(sums), "--name", "mine"]
    )
    assert done.exit_code == 0, done.output
    assert find_bundle("mine") == tmp_path / "home/mine"
    with pytest.raises(InputError, match="without slashes"):
        install(archive, sums, name="../mine")


def test_addresses_are_refused() -> None:
    with pytest.raises(InputError, match="opens no connections"):
        install(Path("https://example.org/archive.tar.zst"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_hostile_archives(row: HostileInput, tmp_path: Path, monkeypatch) -> None:
    command = row.command(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(main, list(command[1:]))
    assert done.exit_code == 2, (done.output, done.exception)
    pattern = f"error: .*{row.sentence}"
    assert re.search(pattern, done.output), done.output
    assert len(done.output.strip().splitlines()) <= 2  # the stage's line, and the sentence
    assert sorted(tmp_path.rglob("*")) == before
