"""An array that rows are appended to and that moves to disk when it becomes large."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sonic.errors import InputError, OutputError

DEFAULT_MEMORY_LIMIT_BYTES = 8 * 2**20


class ArraySpool:
    """Rows of one shape and dtype, kept in memory up to a limit and in a temporary file beyond it.

    The file has no name (it is unlinked as soon as it is open), so nothing is left behind however
    the process ends, and it is read and written without a memory map, so its rows do not count
    towards the process's memory. Every read returns a copy. Any number of threads may read at the same
    time, and one may write rows that no other is reading; an append needs exclusive access.

    Args:
        row_shape: shape of one row, for example (height, width, 3).
        dtype: dtype of the rows.
        memory_limit_bytes: how much is kept in memory before all rows move to the file.
        directory: folder of the temporary file; the system's temporary folder by default.

    Raises:
        InputError: rows of this shape or dtype cannot be stored.
    """

    def __init__(
        self,
        row_shape: tuple[int, ...],
        dtype: DTypeLike,
        memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
        directory: str | Path | None = None,
    ) -> None:
        self._memory: bytearray | None = bytearray()
        self._file: IO[bytes] | None = None
        self._row_shape = tuple(int(size) for size in row_shape)
        self._dtype = np.dtype(dtype)
        if self._dtype.hasobject or min(self._row_shape, default=1) < 0:
            raise InputError(
                f"a row of shape {self._row_shape} and dtype {self._dtype} cannot be stored; "
                "give sizes of 0 or more and a numeric dtype"
            )
        self._row_bytes = prod(self._row_shape) * self._dtype.itemsize
        self._memory_limit_bytes = memory_limit_bytes
        # Found when it is needed: small results need none.
        self._directory = None if directory is None else Path(directory)
        self._rows = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, *row_shape)."""
        return (self._rows, *self._row_shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the rows."""
        return self._dtype

    @property
    def ndim(self) -> int:
        """The number of axes, including that of the rows."""
        return len(self.shape)

    @property
    def on_disk(self) -> bool:
        """Whether the rows have moved to the temporary file."""
        return self._file is not None

    def __len__(self) -> int:
        return self._rows

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (n, *row_shape) of the spool's dtype; after an error the spool is unchanged.

        Raises:
            InputError: the rows have another shape or a dtype that would lose information.
            OutputError: the temporary file cannot be created or its disk is full.
        """
        values = self._bytes_of(rows)
        size = self._rows * self._row_bytes
        self._require_open()
        if self._memory is not None and size + values.nbytes <= self._memory_limit_bytes:
            self._memory += values.data
        else:
            self._store(values, size)
        self._rows += len(rows)

    def __setitem__(self, indices: NDArray[np.integer], rows: NDArray[Any]) -> None:
        """Replace the rows at `indices`, (n,), non-negative and distinct, by `rows` (n, *row_shape).

        Raises:
            InputError: as for `append`.
            OutputError: the temporary file cannot be written.
            IndexError: there is no such row.
        """
        indices = np.asarray(indices)
        if indices.size and not 0 <= indices.min() <= indices.max() < self._rows:
            raise IndexError(f"rows {indices.min()} to {indices.max()} should be among the {self._rows} rows")
        self._require_open()
        values = self._bytes_of(rows).reshape(len(indices), self._row_bytes)
        for index, row in zip(indices.tolist(), values, strict=True):
            if self._memory is not None:
                self._memory[index * self._row_bytes : (index + 1) * self._row_bytes] = row.data
            else:
                self._store(row, index * self._row_bytes)

    def _require_open(self) -> None:
        if self._memory is None and self._file is None:
            raise ValueError("the spool is closed")

    def _bytes_of(self, rows: NDArray[Any]) -> NDArray[np.uint8]:
        rows = np.asarray(rows)
        if rows.shape[1:] != self._row_shape or rows.ndim != self.ndim:
            raise InputError(f"rows of shape {rows.shape} should be (n, *{self._row_shape})")
        if not np.can_cast(rows.dtype, self._dtype, "same_kind"):
            raise InputError(f"rows of dtype {rows.dtype} should be {self._dtype}")
        return np.ascontiguousarray(rows, dtype=self._dtype).reshape(-1).view(np.uint8)

    def _store(self, values: NDArray[np.uint8], offset: int) -> None:
        try:
            self._write(values, offset)
        except OSError as error:
            raise OutputError(
                f"{self._directory or 'the temporary folder'}: temporary data cannot be stored here "
                f"({error.strerror or error}); free some space or choose another folder"
            ) from error

    def _write(self, values: NDArray[np.uint8], offset: int) -> None:
        if self._file is not None:
            _write_all(self._file, offset, memoryview(values.data))
            return
        assert self._memory is not None
        # Unbuffered, so that an error is raised by the append that caused it, and not by a later flush.
        file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
        try:
            with memoryview(self._memory) as stored:
                _write_all(file, 0, stored)
            _write_all(file, offset, memoryview(values.data))
        except BaseException:
            file.close()
            raise
        self._file, self._memory = file, None

    def _read(self, first: int, rows: NDArray[Any]) -> None:
        """Fill `rows` (n, *row_shape), contiguous, with the rows from `first` on."""
        target = rows.reshape(-1).view(np.uint8)
        offset = first * self._row_bytes
        self._require_open()
        if not target.size:
            return
        if self._memory is not None:
            target[:] = np.frombuffer(self._memory, np.uint8, target.size, offset)
            return
        assert self._file is not None
        view = memoryview(target.data)
        while view:
            count = os.preadv(self._file.fileno(), [view], offset)
            if not count:
                raise OutputError(
                    f"{self._directory or 'the temporary folder'}: temporary data was truncated"
                )
            view, offset = view[count:], offset + count

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Read rows into a new array; the key is an integer, a slice, or an array of integers or booleans."""
        if isinstance(key, int | np.integer) and not isinstance(key, bool):
            return self._row(int(key))
        if isinstance(key, slice):
            wanted = range(self._rows)[key]
            if wanted.step != 1:
                return self._gather(np.asarray(wanted, np.intp))
            rows = np.empty((len(wanted), *self._row_shape), self._dtype)
            self._read(wanted.start, rows)
            return rows
        if isinstance(key, tuple) or key is None or key is Ellipsis:
            raise TypeError("index rows by an integer, a slice or one array, or use numpy.asarray")
        indices = np.asarray(key)
        if indices.dtype == bool:
            if indices.shape != (self._rows,):
                raise IndexError(f"{indices.shape} booleans should be one for each row")
            indices = np.flatnonzero(indices)
        elif indices.size == 0:
            indices = indices.astype(np.intp)
        elif not np.issubdtype(indices.dtype, np.integer):
            raise TypeError(f"row indices should be integers, but are {indices.dtype}")
        return self._gather(indices)

    def _row(self, index: int) -> NDArray[Any]:
        try:
            index = range(self._rows)[index]
        except IndexError:
            raise IndexError(f"row {index} is not among the {self._rows} rows") from None
        row = np.empty(self._row_shape, self._dtype)
        self._read(index, row)
        return row

    def _gather(self, indices: NDArray[np.integer]) -> NDArray[Any]:
        rows = np.empty((indices.size, *self._row_shape), self._dtype)
        for position, index in enumerate(indices.reshape(-1)):
            rows[position] = self._row(int(index))
        return rows.reshape(*indices.shape, *self._row_shape)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        index = 0
        while index < self._rows:
            yield self._row(index)
            index += 1

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the rows of a spool can only be read as a copy")
        rows = self[:]
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def mapped(self) -> NDArray[Any]:
        """All rows as one array without a copy; the spool must not be changed afterwards.

        Of rows in the file, it is a map, read-only, which stays valid when the spool is closed. The system
        takes its memory back when it needs it.
        """
        self._require_open()
        if not self._rows or not self._row_bytes:
            return np.empty(self.shape, self._dtype)
        if self._memory is not None:
            return np.frombuffer(self._memory, self._dtype).reshape(self.shape)
        assert self._file is not None
        map_ = mmap.mmap(self._file.fileno(), self._rows * self._row_bytes, access=mmap.ACCESS_READ)
        return np.frombuffer(map_, self._dtype).reshape(self.shape)

    def close(self) -> None:
        """Drop all rows and release the memory and the temporary file."""
        self._memory = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> ArraySpool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()


def _write_all(file: IO[bytes], offset: int, data: memoryview) -> None:
    while data:
        count = os.pwrite(file.fileno(), data, offset)
        data, offset = data[count:], offset + count
