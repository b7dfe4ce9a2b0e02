from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.errors import InputError, OutputError
from sonic.storage.spool import ArraySpool

ROW_BYTES = 2 * 3 * 4


@pytest.fixture(params=["memory", "disk", "both"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ArraySpool, np.ndarray]:
    """A spool of 9 rows (2, 3) and the same rows as an array."""
    limit = {"memory": 10**6, "disk": 0, "both": 5 * ROW_BYTES}[request.param]
    rows = np.random.default_rng(0).normal(size=(9, 2, 3)).astype(np.float32)
    spool = ArraySpool((2, 3), np.float32, limit, tmp_path)
    for start, stop in ((0, 4), (4, 4), (4, 5), (5, 9)):
        spool.append(rows[start:stop])
    assert spool.on_disk == (request.param != "memory")
    return spool, rows


KEYS = [0, 8, -1, -9, np.int64(3), slice(None), slice(2, 5), slice(5, 2), slice(None, None, -2)]
KEYS += [slice(-3, 100), [0, 0, 7], [-1, 2], [], np.array([[1, 2], [3, 4]]), np.arange(9) % 2 == 0]


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_indexing_is_that_of_an_array(filled: tuple[ArraySpool, np.ndarray], key: object) -> None:
    spool, rows = filled
    expected = rows[key] if not (isinstance(key, list) and not key) else rows[:0]
    result = spool[key]
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)
    result[...] = 7
    np.testing.assert_array_equal(spool[:], rows)


def test_it_is_an_array_to_numpy(filled: tuple[ArraySpool, np.ndarray]) -> None:
    spool, rows = filled
    assert (len(spool), spool.shape, spool.ndim, spool.dtype) == (9, (9, 2, 3), 3, np.float32)
    np.testing.assert_array_equal(np.asarray(spool), rows)
    assert np.asarray(spool, np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.stack(list(spool)), rows)
    with pytest.raises(ValueError, match="copy"):
        np.array(spool, copy=False)


@pytest.mark.parametrize("key", [9, -10, [9], [0, -10], np.ones(8, bool)], ids=repr)
def test_a_row_beyond_the_end_is_an_index_error(filled: tuple[ArraySpool, np.ndarray], key: object) -> None:
    with pytest.raises(IndexError):
        filled[0][key]


@pytest.mark.parametrize("key", [(0, 1), None, ..., 1.0, [0.5], "0"], ids=repr)
def test_another_kind_of_index_is_a_type_error(filled: tuple[ArraySpool, np.ndarray], key: object) -> None:
    with pytest.raises(TypeError):
        filled[0][key]


@given(
    counts=st.lists(st.integers(0, 5), max_size=6),
    limit=st.integers(0, 60),
    row_shape=st.sampled_from([(), (3,), (2, 0), (1, 2)]),
    dtype=st.sampled_from([np.uint8, np.int16, np.float64]),
)
def test_any_appends_read_back(
    counts: list[int], limit: int, row_shape: tuple[int, ...], dtype: type
) -> None:
    rng = np.random.default_rng(sum(counts))
    parts = [rng.integers(0, 200, (count, *row_shape)).astype(dtype) for count in counts]
    with ArraySpool(row_shape, dtype, limit) as spool:
        for number, part in enumerate(parts):
            spool.append(part)
            expected = np.concatenate(parts[: number + 1])
            np.testing.assert_array_equal(spool[:], expected)
        total = sum(part.nbytes for part in parts)
        assert spool.on_disk == (total > limit)


@given(st.lists(st.integers(0, 8), unique=True), st.sampled_from([0, 10**6]))
def test_rows_can_be_replaced(indices: list[int], limit: int) -> None:
    rows = np.arange(9 * 6, dtype=np.float32).reshape(9, 2, 3)
    with ArraySpool((2, 3), np.float32, limit) as spool:
        spool.append(rows)
        new = -rows[indices] - 1
        spool[np.array(indices, int)] = new
        rows[indices] = new
        np.testing.assert_array_equal(spool[:], rows)
        for wrong in ([9], [-1], [0, 9]):
            with pytest.raises(IndexError, match="among the 9 rows"):
                spool[np.array(wrong)] = np.zeros((len(wrong), 2, 3), np.float32)
        with pytest.raises(InputError, match="shape"):
            spool[np.array([0])] = np.zeros((1, 3, 2), np.float32)
        np.testing.assert_array_equal(spool[:], rows)


def test_threads_read_their_own_rows() -> None:
    rows = np.random.default_rng(0).integers(0, 255, (200, 4096)).astype(np.uint8)
    with ArraySpool((4096,), np.uint8, 0) as spool, ThreadPoolExecutor(8) as pool:
        spool.append(rows)
        found = list(pool.map(lambda start: spool[start::8], list(range(8)) * 4))
    for start, part in zip(list(range(8)) * 4, found, strict=True):
        np.testing.assert_array_equal(part, rows[start::8])


def test_rows_that_do_not_fit_are_refused() -> None:
    spool = ArraySpool((2, 3), np.uint8)
    for wrong in (np.zeros((2, 3), np.uint8), np.zeros((1, 3, 2), np.uint8), np.uint8(1)):
        with pytest.raises(InputError, match="shape"):
            spool.append(wrong)
    for wrong in (np.zeros((1, 2, 3), np.float32), np.zeros((1, 2, 3), np.int64)):
        with pytest.raises(InputError, match="dtype"):
            spool.append(wrong)
    with pytest.raises(InputError):
        ArraySpool((-1,), np.uint8)
    with pytest.raises(InputError):
        ArraySpool((1,), object)
    assert len(spool) == 0


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    spool = ArraySpool((4,), np.uint8, 0, tmp_path)
    spool.append(np.zeros((3, 4), np.uint8))
    assert spool.on_disk
    assert list(tmp_path.iterdir()) == []


def test_a_closed_spool_says_so() -> None:
    for limit in (0, 100):
        spool = ArraySpool((4,), np.uint8, limit)
        spool.append(np.zeros((3, 4), np.uint8))
        spool.close()
        spool.close()
        with pytest.raises(ValueError, match="closed"):
            spool[0]
        with pytest.raises(ValueError, match="closed"):
            spool.append(np.zeros((1, 4), np.uint8))
        with pytest.raises(ValueError, match="closed"):
            spool[np.array([0])] = np.zeros((1, 4), np.uint8)


@pytest.mark.filterwarnings("error")
def test_a_dropped_spool_closes_its_file() -> None:
    spool = ArraySpool((4,), np.uint8, 0)
    spool.append(np.zeros((3, 4), np.uint8))
    file = weakref.ref(spool._file)
    del spool
    gc.collect()
    assert file() is None


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    spool = ArraySpool((4,), np.uint8, 8, tmp_path / "missing")
    spool.append(np.ones((2, 4), np.uint8))
    with pytest.raises(OutputError, match="missing"):
        spool.append(np.ones((1, 4), np.uint8))
    np.testing.assert_array_equal(spool, np.ones((2, 4)))


FULL_DISK = """
import resource, sys
import numpy as np
from sonic.errors import OutputError
from sonic.storage.spool import ArraySpool
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
spool = ArraySpool((1000,), np.uint8, 10_000, sys.argv[1])
for value in range(8):
    spool.append(np.full((12, 1000), value, np.uint8))
assert spool.on_disk
try:
    spool.append(np.zeros((12, 1000), np.uint8))
except OutputError as error:
    print(error)
assert spool.shape == (96, 1000)
spool.append(np.full((2, 1000), 8, np.uint8))
assert (spool[:] == (np.arange(98) // 12)[:, None]).all()
"""


def test_a_full_disk_names_the_folder_and_keeps_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(f"{tmp_path}: temporary data cannot be stored")
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize("limit", [10**6, 100])
def test_all_rows_as_one_array(tmp_path: Path, limit: int) -> None:
    """Of rows on disk, a map that outlives the spool."""
    rows = np.arange(3000, dtype=np.int16).reshape(-1, 2)
    with ArraySpool((2,), np.int16, limit, tmp_path) as spool:
        assert spool.mapped().shape == (0, 2)
        spool.append(rows[:7])
        spool.append(rows[7:])
        assert spool.on_disk == (limit == 100)
        mapped = spool.mapped()
    np.testing.assert_array_equal(mapped, rows)
    assert mapped.flags.writeable == (limit != 100)


def test_rows_in_memory_need_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError(2, "no usable temporary directory")

    monkeypatch.setattr("tempfile.gettempdir", fail)
    monkeypatch.setattr("tempfile._gettempdir", fail, raising=False)
    spool = ArraySpool((2,), np.int16, 1000)
    spool.append(np.zeros((9, 2), np.int16))
    with pytest.raises(OutputError, match="temporary data cannot be stored"):
        spool.append(np.zeros((1000, 2), np.int16))
