"""The files of a compiled submodel: as they are in a folder, or as they were checked in a bundle."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from sonic.bounded import JSON_LIMIT_BYTES, read_bounded
from sonic.bundle.bundle import Bundle
from sonic.errors import BundleError

PROGRAM = "program.json"


class ProgramFolder:
    """The files of a compiled submodel in a folder that the caller made itself; nothing is checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read_program(self) -> bytes:
        """The content of ``program.json``.

        Raises:
            BundleError: it cannot be read.
        """
        path = self.folder / PROGRAM
        try:
            return read_bounded(path, JSON_LIMIT_BYTES)
        except OSError as error:
            raise BundleError(
                f"{path} cannot be read ({error.strerror}); compile the bundle again"
            ) from error

    def map_weights(self, name: str) -> np.ndarray:
        """A file's bytes, memory-mapped copy-on-write: uint8 (n,)."""
        return np.memmap(self.folder / name, np.uint8, "c")

    @contextmanager
    def library(self, name: str) -> Iterator[Path]:
        """The path of a library, while it is being loaded."""
        yield self.folder / name


class CheckedProgram(ProgramFolder):
    """The files of a submodel of a bundle, which are those that the manifest lists, unchanged."""

    def __init__(self, bundle: Bundle, submodel: str) -> None:
        self._bundle, self._info = bundle, bundle.manifest.submodels[submodel]
        self._program = PurePosixPath(self._info.files[0].path)
        super().__init__(bundle.directory / self._program.parent)

    def read_program(self) -> bytes:
        return self._bundle.read(self._program.as_posix())

    def map_weights(self, name: str) -> np.ndarray:
        with (
            self._bundle.opened(self._listed(name)) as file,
            os.fdopen(os.dup(file.descriptor), "rb") as weights,
        ):
            return np.memmap(weights, np.uint8, "c")

    @contextmanager
    def library(self, name: str) -> Iterator[Path]:
        with checked_copy(self._bundle, self._listed(name)) as copy:
            yield copy

    def _listed(self, name: str) -> str:
        path = (self._program.parent / name).as_posix()
        if path not in {file.path for file in self._info.files}:
            raise BundleError(
                f"{self.folder / PROGRAM} names {ascii(name)[:120]}, which the manifest does not list for "
                f"'{self._info.name}'; compile the bundle again"
            )
        return path


@contextmanager
def checked_copy(bundle: Bundle, path: str) -> Iterator[Path]:
    """A copy of a library that nobody else can change: the bytes that were checked are those that run.

    It is needed only until the library is loaded.

    Raises:
        BundleError: the library was changed.
    """
    with tempfile.TemporaryDirectory(prefix="sonic-") as folder:
        copy = Path(folder) / PurePosixPath(path).name
        copy.write_bytes(bundle.read(path))
        yield copy
