"""The checkpoint's file: what is written is read back, or the file is known to be damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sonic.storage import checkpoint
from sonic.storage.checkpoint import DamagedCheckpoint, read_checkpoint, write_checkpoint
from sonic.storage.spool import ArraySpool

NAMES = st.sampled_from(["latents", "image_differences", "audio_differences"])
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SHARED_FOLDER = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def spool_of(array: np.ndarray) -> ArraySpool:
    spool = ArraySpool(array.shape[1:], array.dtype)
    spool.append(array)
    return spool


@SHARED_FOLDER
@given(
    st.dictionaries(st.text(max_size=9), VALUES, max_size=4),
    st.integers(0, 1000),
    st.dictionaries(NAMES, SHAPES),
    st.integers(0, 99),
)
def test_what_is_written_is_read(
    tmp_path: Path, identity: dict, step: int, shapes: dict[str, tuple[int, ...]], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    arrays = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    path = tmp_path / "a.checkpoint"
    write_checkpoint(path, identity, step, {name: spool_of(array) for name, array in arrays.items()})
    found = read_checkpoint(path)
    assert found is not None
    assert (found.identity, found.step, found.shapes) == (identity, step, shapes)
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.stack(list(found.rows(name))), array)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.checkpoint"]
    with np.load(path) as loaded:
        assert all((loaded[name] == array).all() for name, array in arrays.items())


ARRAY = np.arange(48, dtype=np.float32).reshape(3, 4, 2, 2)


@SHARED_FOLDER
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path: Path, place: int, change: int) -> None:
    path = tmp_path / "a.checkpoint"
    write_checkpoint(path, {"seed": 7}, 3, {"latents": spool_of(ARRAY)})
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= change
    path.write_bytes(data)
    try:
        found = read_checkpoint(path)
    except DamagedCheckpoint as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert found is not None and (found.identity, found.step) == ({"seed": 7}, 3)
    np.testing.assert_array_equal(np.stack(list(found.rows("latents"))), ARRAY)


@SHARED_FOLDER
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_noticed(tmp_path: Path, part: float) -> None:
    path = tmp_path / "a.checkpoint"
    write_checkpoint(path, {}, 3, {"latents": spool_of(ARRAY)})
    with path.open("rb+") as file:
        file.truncate(int(part * path.stat().st_size))
    with pytest.raises(DamagedCheckpoint, match="a.checkpoint"):
        read_checkpoint(path)


def test_something_else_is_noticed(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "missing") is None
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("a text")
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("a.txt", "a text")
    for name in ("pipe", "text", "archive", "."):
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [("format", 2, "of format 2"), ("step", -1, "'step' is -1"), ("more", 1, "'more' is unknown")],
)
def test_another_header_is_named(tmp_path: Path, entry: str, value: int, expected: str) -> None:
    header = {"format": 1, "identity": {}, "step": 3} | {entry: value}
    with zipfile.ZipFile(tmp_path / "a.checkpoint", "w") as archive:
        archive.writestr("checkpoint.json", json.dumps(header))
    with pytest.raises(DamagedCheckpoint, match=expected):
        read_checkpoint(tmp_path / "a.checkpoint")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    spool = ArraySpool((4, 64, 64), np.float32, directory=tmp_path)
    for value in range(400):
        spool.append(np.full((1, 4, 64, 64), value, np.float32))
    assert spool.on_disk
    tracemalloc.start()
    try:
        write_checkpoint(tmp_path / "a.checkpoint", {}, 1, {"latents": spool})
        found = read_checkpoint(tmp_path / "a.checkpoint")
        assert found is not None and sum(1 for _ in found.rows("latents")) == 400
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # the rows are 26 MB
    finally:
        tracemalloc.stop()


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from sonic.storage.checkpoint import read_checkpoint, write_checkpoint
from sonic.storage.spool import ArraySpool
path = Path(sys.argv[1])
spool = ArraySpool((100, 100), np.float32)
write_checkpoint(path, {}, 1, {"latents": spool})
spool.append(np.zeros((10, 100, 100), np.float32))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_checkpoint(path, {}, 2, {"latents": spool})
except OSError as error:
    print(error.strerror)
print(read_checkpoint(path).step)
"""


def test_a_full_disk_keeps_the_earlier_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.checkpoint")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["File too large", "1"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.checkpoint"]


def test_it_is_on_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(checkpoint.os, "fsync", lambda file: (order.append("fsync"), fsync(file)))
    monkeypatch.setattr(checkpoint.os, "replace", lambda *paths: (order.append("rename"), replace(*paths)))
    write_checkpoint(tmp_path / "a.checkpoint", {}, 3, {"latents": spool_of(ARRAY)})
    assert order == ["fsync", "rename"]
