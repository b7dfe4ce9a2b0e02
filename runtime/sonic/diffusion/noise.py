"""The initial noise of a clip: drawn from a seed, or read from a file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

import numpy as np

from sonic.bounded import open_regular
from sonic.errors import InputError

_Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
_HEADERS: dict[tuple[int, int], Callable[[BinaryIO], _Header]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def draw_frames(seed: int, frames: int, *shape: int) -> Iterator[np.ndarray]:
    """Yield the noise of each frame in turn, float32 of `shape`, from NumPy's PCG64."""
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(frames):
        yield generator.standard_normal(shape, np.float32)


def draw_noise(seed: int, frames: int, channels: int, height: int, width: int) -> np.ndarray:
    """Standard normal noise, float32 (frames, channels, height, width); the same seed gives the same noise.

    It is drawn frame by frame, so that a longer clip starts with the noise of a shorter one.
    """
    return np.stack(list(draw_frames(seed, frames, channels, height, width)))


def load_noise(path: str | os.PathLike[str]) -> np.ndarray:
    """Memory-map the array of a ``.npy`` file; :func:`check_noise` checks its shape and dtype.

    Raises:
        InputError: the file is missing, no regular file, or does not hold exactly one array of numbers.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:  # reading a pipe could block forever
            return _map_array(file)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a .npy file of float32 noise") from None
    except Exception as error:  # there is no list of what malformed headers make NumPy raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{path} is not a .npy file of numbers ({reason[:200]}); give one of float32 noise"
        ) from error


def _map_array(file: BinaryIO) -> np.ndarray:
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        raise ValueError("it is an archive of several arrays")
    version = np.lib.format.read_magic(file)
    read_header = _HEADERS.get(version)
    if read_header is None:
        raise ValueError(f"its format has version {version[0]}.{version[1]}")
    shape, fortran_order, dtype = read_header(file)
    if dtype.kind not in "fiu":
        raise ValueError(f"its values are {str(dtype)[:80]}")
    if min(shape, default=0) < 0:
        raise ValueError("an axis has a negative length")
    stored, needed = os.fstat(file.fileno()).st_size - file.tell(), math.prod(shape) * dtype.itemsize
    if stored < needed:
        raise ValueError(f"it is cut short: {needed} bytes of values are announced, but {stored} are there")
    if not needed:
        return np.empty(shape, dtype)  # nothing to map
    order: Literal["C", "F"] = "F" if fortran_order else "C"
    return np.memmap(file, dtype, "r", file.tell(), shape, order)


def check_noise(array: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
    """Make sure that initial noise fits a clip.

    Raises:
        InputError: the array is not float32 of `shape`, or holds values that are not finite.
    """
    if array.shape != shape or array.dtype != np.float32:
        raise InputError(
            f"{name} is {array.dtype} {array.shape}, but this clip needs float32 {shape} "
            "(frames, channels, height / 8, width / 8)"
        )
    if not all(np.isfinite(frame).all() for frame in array):
        raise InputError(f"{name} holds values that are not finite; draw it from a normal distribution")
