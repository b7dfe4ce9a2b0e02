"""The initial noise of a clip: drawn from a seed, or read from a file."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from sonic.errors import InputError


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
        InputError: the file does not exist, or does not hold exactly one array of numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a .npy file of float32 noise") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a .npy file of numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays; give a .npy file with one")
    return array


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
