"""Intermediate results as ``.npy`` files, to compare them with another implementation's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from sonic.errors import OutputError
from sonic.storage.files import reason_of, replacing_file
from sonic.storage.owned import remove_abandoned
from sonic.storage.spool import ArraySpool


class DumpWriter:
    """Writes arrays into a folder; they all appear together when the ``with`` block succeeds.

    Args:
        directory: created if it does not exist.

    Raises:
        OutputError: the folder cannot be created or written.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._partial = ExitStack()  # files that get their final names at the end
        try:
            self._made = not self.directory.exists()
            self.directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self.directory, os.W_OK):
                raise PermissionError("it is not writable")
            remove_abandoned(self.directory)
        except (OSError, ValueError) as error:  # ValueError: no path at all
            raise OutputError(
                f"cannot write the dump to {directory} ({reason_of(error)}); "
                "give a folder that can be written"
            ) from error

    def write(self, name: str, array: np.ndarray | ArraySpool) -> None:
        """Write a whole array as ``name.npy``, row by row."""
        self.write_rows(name, array, array.shape, array.dtype)

    def write_rows(
        self,
        name: str,
        rows: Iterable[np.ndarray],
        shape: tuple[int, ...],
        dtype: np.dtype | type,
    ) -> None:
        """Write `shape[0]` rows one after another as ``name.npy``, without holding them all."""
        with self.open_rows(name, shape, dtype) as append:
            for row in rows:
                append(row)

    def open_rows(self, name: str, shape: tuple[int, ...], dtype: np.dtype | type) -> RowWriter:
        """Return a writer of `shape[0]` rows, to be used in a ``with`` block."""
        partial = self._partial.enter_context(replacing_file(self.directory / f"{name}.npy"))
        return RowWriter(partial, shape, np.dtype(dtype))

    def __enter__(self) -> DumpWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._partial.__exit__(kind, error, trace)
        finally:
            self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        if self._made and not any(self.directory.iterdir()):
            self.directory.rmdir()


class RowWriter:
    """Appends rows to one ``.npy`` file whose shape is known beforehand."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._path, self._shape, self._dtype = path, shape, dtype
        self._file: IO[bytes] | None = None

    def __enter__(self) -> RowWriter:
        try:
            self._file = self._path.open("wb")
            header = {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": self._shape,
            }
            np.lib.format.write_array_header_1_0(self._file, header)
        except OSError as error:
            raise self._failure(error) from error
        return self

    def __call__(self, row: np.ndarray) -> None:
        """Append one row."""
        assert self._file is not None
        if row.shape != self._shape[1:]:
            raise ValueError(f"a row of {self._path.name} is {row.shape}, not {self._shape[1:]}")
        try:
            self._file.write(np.ascontiguousarray(row, self._dtype).tobytes())
        except OSError as error:
            raise self._failure(error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as failure:
                if kind is None:
                    raise self._failure(failure) from failure

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write {self._path.parent} ({error.strerror}); free some space or choose another folder"
        )
