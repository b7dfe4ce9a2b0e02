"""Golden vectors: what PyTorch computed, in small files in a bundle.

Both kinds of files are NumPy archives (.npz), compressed with LZMA: its large dictionary exploits that the
windows of a clip shorter than a window repeat its frames. The same arrays give the same bytes.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonic.bundle.arrays import read_archive
from sonic.errors import BundleError

SAMPLED_VALUES = 1 << 16
"""Of larger outputs, about this many values are kept, and at most twice as many."""


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
        return cls._of(read_arrays(path), str(path))

    @classmethod
    def of(cls, content: bytes, source: str) -> GoldenVectors:
        """Read the file's content; `source` is named in errors.

        Raises:
            BundleError: it holds something else.
        """
        return cls._of(read_archive(content, source), source)

    @classmethod
    def _of(cls, arrays: Mapping[str, np.ndarray], source: str) -> GoldenVectors:
        inputs = {name[3:]: array for name, array in arrays.items() if name.startswith("in.")}
        outputs = {
            name[4:]: _expected_output(arrays, name[4:], source)
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
        return cls._of(read_arrays(path), str(path))

    @classmethod
    def of(cls, content: bytes, source: str) -> ExpectedClip:
        """Read the file's content; `source` is named in errors.

        Raises:
            BundleError: it holds something else.
        """
        return cls._of(read_archive(content, source), source)

    @classmethod
    def _of(cls, arrays: Mapping[str, np.ndarray], source: str) -> ExpectedClip:
        clip = cls(_entry(arrays, "noise", source), _entry(arrays, "frames", source))
        if clip.noise.dtype != np.float32 or clip.frames.dtype != np.uint8 or clip.frames.ndim != 4:
            raise BundleError(f"{source} holds no clip of uint8 frames; copy or convert the bundle again")
        return clip


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
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read as golden vectors ({error.strerror}); copy or convert the bundle again"
        ) from error
    return read_archive(content, str(path))


def _expected_output(arrays: Mapping[str, np.ndarray], name: str, source: str) -> ExpectedOutput:
    values = arrays[f"out.{name}"]
    shape, stride = _entry(arrays, f"shape.{name}", source), _entry(arrays, f"stride.{name}", source)
    sizes = shape.ravel().tolist()
    if (
        shape.dtype.kind not in "iu"
        or stride.dtype.kind not in "iu"
        or stride.size != 1
        or stride.item() < 1
        or min(sizes, default=0) < 0
        or -(-math.prod(sizes) // stride.item()) != values.size
    ):
        raise BundleError(f"{source} does not say what '{name}' is of; copy or convert the bundle again")
    return ExpectedOutput(values.ravel(), tuple(sizes), stride.item())


def _entry(arrays: Mapping[str, np.ndarray], name: str, source: str) -> np.ndarray:
    if name not in arrays:
        raise BundleError(f"{source} holds no '{name}'; copy or convert the bundle again")
    return arrays[name]
