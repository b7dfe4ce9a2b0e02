"""Golden vectors: what PyTorch computed, in small files in a bundle.

Both kinds of files are NumPy archives (.npz), compressed with LZMA: its large dictionary exploits that the
windows of a clip shorter than a window repeat its frames. The same arrays give the same bytes.
"""

from __future__ import annotations

import lzma
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonic.errors import BundleError

SAMPLED_VALUES = 1 << 16
"""Of larger outputs, about this many values are kept, and at most twice as many."""
# What NumPy raises for files that are not archives of arrays, or are incomplete.
_UNREADABLE = (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, lzma.LZMAError)


@dataclass(frozen=True, eq=False)
class ExpectedOutput:
    """An output, or a sample of its values, spread evenly over all of it.

    Attributes:
        values: (n,), every `stride`-th value of the flattened output, starting with the first.
        shape: the output's shape.
        stride: 1 if the whole output is kept.
    """

    values: np.ndarray
    shape: tuple[int, ...]
    stride: int = 1

    @classmethod
    def of(cls, output: np.ndarray) -> ExpectedOutput:
        """Sample an output of any shape."""
        stride = max(1, output.size // SAMPLED_VALUES)
        # Without a common factor, the sample covers every index of every axis: every channel, row and column.
        while math.gcd(stride, output.size) > 1:
            stride += 1
        return cls(output.ravel()[::stride], output.shape, stride)

    def values_of(self, output: np.ndarray) -> np.ndarray:
        """The values of another output of the same shape at the same positions, (n,)."""
        return output.ravel()[:: self.stride]


@dataclass(frozen=True, eq=False)
class GoldenVectors:
    """One call of a submodel: its complete inputs, and PyTorch's outputs for them.

    In its file, an input is ``in.NAME``, and an :class:`ExpectedOutput` is ``out.NAME``, ``shape.NAME`` and
    ``stride.NAME``.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, ExpectedOutput]

    def save(self, path: Path) -> None:
        """Write the file."""
        arrays = {f"in.{name}": array for name, array in self.inputs.items()}
        for name, output in self.outputs.items():
            arrays[f"out.{name}"] = output.values
            arrays[f"shape.{name}"] = np.array(output.shape, np.int64)
            arrays[f"stride.{name}"] = np.array(output.stride, np.int64)
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> GoldenVectors:
        """Read the file.

        Raises:
            BundleError: it holds something else.
        """
        arrays = read_arrays(path)
        inputs = {name[3:]: array for name, array in arrays.items() if name.startswith("in.")}
        outputs = {
            name[4:]: ExpectedOutput(
                array,
                tuple(_entry(arrays, f"shape.{name[4:]}", path).tolist()),
                int(_entry(arrays, f"stride.{name[4:]}", path)),
            )
            for name, array in arrays.items()
            if name.startswith("out.")
        }
        return cls(inputs, outputs)


@dataclass(frozen=True, eq=False)
class ExpectedClip:
    """A clip's initial noise and its frames, ``noise`` and ``frames`` in its file.

    Attributes:
        noise: (generated frames, 4, h, w) float32; stored, because a future NumPy may draw other noise from
            the same seed.
        frames: (frames, H, W, 3) uint8, from the first to the last interpolated one.
    """

    noise: np.ndarray
    frames: np.ndarray

    def save(self, path: Path) -> None:
        """Write the file."""
        write_arrays(path, {"noise": self.noise, "frames": self.frames})

    @classmethod
    def load(cls, path: Path) -> ExpectedClip:
        """Read the file.

        Raises:
            BundleError: it holds something else.
        """
        arrays = read_arrays(path)
        return cls(_entry(arrays, "noise", path), _entry(arrays, "frames", path))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an archive that :func:`numpy.load` reads; the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980
            entry.compress_type = zipfile.ZIP_LZMA
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an archive, by name.

    Raises:
        BundleError: the file is not such an archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise BundleError(
            f"{path} cannot be read as golden vectors ({error}); copy or convert the bundle again"
        ) from error


def _entry(arrays: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    if name not in arrays:
        raise BundleError(f"{path} holds no '{name}'; copy or convert the bundle again")
    return arrays[name]
