"""NumPy's files (.npy, .npz) as somebody else may have written them: bounded, never a pickle.

What the header states is compared with what the file has before memory is taken for it.
"""

from __future__ import annotations

import io
import lzma
import math
import zipfile
import zlib
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from sonic.errors import BundleError, first_line

ARCHIVE_LIMIT_BYTES = 1 << 29  # of all arrays in an archive, unpacked; the published size has a tenth
_MOST_ARRAYS = 1_000
# What NumPy and zipfile raise for files that are no arrays, or are incomplete.
_UNREADABLE = (
    OSError, ValueError, EOFError, AttributeError, TypeError, SyntaxError, KeyError, IndexError,
    OverflowError, MemoryError, RecursionError, NotImplementedError, RuntimeError, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError,
)  # fmt: skip
_AGAIN = "copy or convert the bundle again"


def read_array(file: BinaryIO, source: str) -> np.ndarray:
    """Read an array from a file in NumPy's format (.npy) that can be sought in.

    Args:
        file: the open file.
        source: its name, for the error.

    Raises:
        BundleError: it is not such a file, or its header states more or less than it has.
    """
    try:
        return _read(file)
    except _UNREADABLE as error:
        raise BundleError(
            f"{source} cannot be read as a NumPy array ({first_line(error)}); {_AGAIN}"
        ) from error


def read_archive(content: bytes, source: str) -> dict[str, np.ndarray]:
    """Read every array of a NumPy archive (.npz), by name.

    Args:
        content: the archive.
        source: its name, for the error.

    Raises:
        BundleError: it is not such an archive, or holds more than `ARCHIVE_LIMIT_BYTES`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_ARRAYS or sum(one.file_size for one in entries) > ARCHIVE_LIMIT_BYTES:
                raise ValueError(f"it holds more than {ARCHIVE_LIMIT_BYTES:,} bytes")
            arrays = {}
            for entry in entries:
                with archive.open(entry) as file:
                    unpacked = file.read(entry.file_size + 1)
                arrays[entry.filename.removesuffix(".npy")] = _read(io.BytesIO(unpacked))
            return arrays
    except _UNREADABLE as error:
        raise BundleError(
            f"{source} cannot be read as golden vectors ({first_line(error)}); {_AGAIN}"
        ) from error


def _read(file: BinaryIO) -> np.ndarray:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, fortran_order, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran_order, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"its format is version {version[0]}.{version[1]}, not 1.0 or 2.0")
    if dtype.kind not in "biuf" or any(size < 0 for size in shape) or len(shape) > 32:
        raise ValueError(f"it should hold numbers, but its header says {str(dtype)[:60]} {str(shape)[:60]}")
    stated = math.prod(shape) * dtype.itemsize
    content = file.read(stated + 1) if stated <= ARCHIVE_LIMIT_BYTES else b""
    if len(content) != stated:
        raise ValueError("its header states another size than it has")
    flat = np.frombuffer(bytearray(content), dtype)  # of a bytearray: writable, as np.load's
    return flat.reshape(shape[::-1]).transpose() if fortran_order else flat.reshape(shape)
