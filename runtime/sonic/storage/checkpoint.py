"""The file that keeps how far a long computation is: what it computes, the step, and its arrays.

    write_checkpoint(path, identity, step=3, arrays={"latents": spool})
    checkpoint = read_checkpoint(path)
    checkpoint.step, checkpoint.shapes["latents"]
    for row in checkpoint.rows("latents"):
        ...

It is a ZIP archive without compression, as NumPy's ``.npz``, and `numpy.load` reads it too: it holds
``checkpoint.json`` and a ``.npy`` file for every array, and a checksum of each. Arrays are written and read
row by row, so that memory does not grow with their size.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
from pydantic import Field

from sonic.errors import InputError
from sonic.records import EXACT, read_record
from sonic.storage.owned import OwnedFile, owned_name
from sonic.storage.spool import ArraySpool

_FORMAT = 1
_HEADER = "checkpoint.json"
_SUFFIX = ".npy"


class DamagedCheckpoint(InputError):
    """A file that is no checkpoint, or no longer one, or one of another version."""


@dataclass(frozen=True)
class _Header:
    """The content of ``checkpoint.json``."""

    __pydantic_config__ = EXACT

    format: int
    identity: dict[str, Any]
    step: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read, and whose checksums are right.

    Attributes:
        path: the file, which has to stay as it is while rows are read.
        identity: what is computed, as it was given to :func:`write_checkpoint`.
        step: how many steps were done.
        shapes: the shape of every array, (rows, *row_shape), by name.
    """

    path: Path
    identity: dict[str, Any]
    step: int
    shapes: dict[str, tuple[int, ...]]

    def rows(self, name: str) -> Iterator[np.ndarray]:
        """The rows of an array, read-only."""
        with zipfile.ZipFile(self.path) as archive, archive.open(name + _SUFFIX) as file:
            (count, *row_shape), dtype = _read_array_header(file)
            for _ in range(count):
                yield np.frombuffer(file.read(prod(row_shape) * dtype.itemsize), dtype).reshape(row_shape)
            if file.read(1):  # also makes the archive compare the checksum
                raise ValueError(f"{name} is longer than its header says")


def write_checkpoint(
    path: Path, identity: Mapping[str, Any], step: int, arrays: Mapping[str, ArraySpool]
) -> None:
    """Replace a checkpoint, completely or not at all; it is on disk when this returns.

    Args:
        path: the file.
        identity: JSON values that say what is computed.
        step: how many steps are done.
        arrays: by name.

    Raises:
        OSError: it cannot be written; the earlier one is still there.
    """
    header = {"format": _FORMAT, "identity": identity, "step": step}
    with OwnedFile(owned_name(path)) as partial:
        with zipfile.ZipFile(partial.path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(_HEADER), json.dumps(header))
            for name, rows in arrays.items():
                with archive.open(zipfile.ZipInfo(name + _SUFFIX), "w", force_zip64=True) as file:
                    _write_array_header(file, rows)
                    for row in rows:
                        file.write(row.data)
        with open(partial.path, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial.path, path)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Read a checkpoint and check all of it; None if there is none.

    Raises:
        DamagedCheckpoint: the file is something else, was changed, or cannot be read.
    """
    if path.exists() and not path.is_file():  # reading a pipe could block forever
        raise DamagedCheckpoint(f"{path} is not a regular file")
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(_HEADER)
            names = [name for name in archive.namelist() if name != _HEADER]
            shapes = {}
            for name in names:
                with archive.open(name) as file:
                    shapes[name.removesuffix(_SUFFIX)] = _read_array_header(file)[0]
        header = read_record(_Header, text, f"{path}: {_HEADER}", DamagedCheckpoint)
        checkpoint = Checkpoint(path, header.identity, header.step, shapes)
        for name in shapes:
            for _ in checkpoint.rows(name):
                pass
    except FileNotFoundError:
        return None
    except DamagedCheckpoint:
        raise
    except Exception as error:  # there is no list of what a damaged archive makes its readers raise
        reason = getattr(error, "strerror", None) or str(error)
        raise DamagedCheckpoint(f"{path} is not a checkpoint, or was damaged ({reason})") from error
    if header.format != _FORMAT:
        raise DamagedCheckpoint(
            f"{path} is a checkpoint of format {header.format}, but {_FORMAT} is read here"
        )
    return checkpoint


def _write_array_header(file: IO[bytes], rows: ArraySpool) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(rows.dtype),
        "fortran_order": False,
        "shape": rows.shape,
    }
    np.lib.format.write_array_header_1_0(file, header)


def _read_array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"an array of version {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype.hasobject or not shape:
        raise ValueError("an array without rows of numbers")
    return shape, dtype
