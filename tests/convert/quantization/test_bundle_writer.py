"""Writing a bundle: whole, or not at all."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.store import sha256_of
from sonic.errors import InputError, OutputError
from sonic_convert.bundle_writer import check_target, copy_graph, new_bundle, write_manifest


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_nothing_an_empty_folder_or_a_bundle_may_be_replaced(tmp_path: Path, bundle: Bundle) -> None:
    check_target(tmp_path / "nothing")
    check_target(tmp_path)
    check_target(bundle.directory)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_anything_else_may_not(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine"
    if kind == "folder":
        path.mkdir()
    (path / "letter.txt" if kind == "folder" else path).write_text("dear")
    with pytest.raises(OutputError, match="mine exists and is no bundle"):
        check_target(path)


def test_a_filled_folder_takes_the_place(tmp_path: Path) -> None:
    target = tmp_path / "new" / "bundle"
    for text in ("first", "second"):
        with new_bundle(target) as partial:
            assert partial.parent == target.parent and partial != target
            (partial / text).write_text(text)
        assert names(target) == {text}
    assert names(tmp_path / "new") == {"bundle", "bundle/second"}
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (InputError("wrong"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OutputError),
    ],
)
def test_at_an_error_the_old_bundle_stays(
    tmp_path: Path, error: BaseException, shown: type[BaseException]
) -> None:
    target = tmp_path / "bundle"
    with new_bundle(target) as partial:
        (partial / "old").write_text("old")
    with pytest.raises(shown), new_bundle(target) as partial:
        (partial / "new").write_text("new")
        raise error
    assert names(tmp_path) == {"bundle", "bundle/old"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write .*bundle"), new_bundle(tmp_path / "file" / "bundle"):
        raise AssertionError("there is nothing to fill")


def test_a_graph_is_copied_with_its_weights(tmp_path: Path) -> None:
    graph, beside = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    graph.write_bytes(b"graph")
    (alone,) = copy_graph(graph, tmp_path / "bundle", tmp_path)
    beside.write_bytes(b"weights")
    files = copy_graph(graph, tmp_path / "bundle", tmp_path)
    assert [file.path for file in files] == ["bundle/model.onnx", "bundle/model.onnx.data"]
    assert files[0] == alone
    for file in files:
        path = tmp_path / file.path
        assert (file.bytes, file.sha256) == (path.stat().st_size, sha256_of(path))
    beside.write_bytes(b"damaged")
    assert (tmp_path / "bundle/model.onnx.data").read_bytes() == b"weights"  # a copy, not a link


def test_a_manifest_is_replaced_at_once(tmp_path: Path, bundle: Bundle) -> None:
    for name in ("first", "second"):
        manifest = replace(bundle.manifest, name=name)
        write_manifest(tmp_path, manifest)
        assert read_manifest(tmp_path) == manifest
    assert names(tmp_path) == {"manifest.json"}
    with pytest.raises(OutputError, match="cannot write .*manifest.json"):
        write_manifest(tmp_path / "missing", bundle.manifest)
