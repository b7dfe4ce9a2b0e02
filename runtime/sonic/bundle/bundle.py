"""An opened bundle: its manifest, and its files as they were checked.

bundle = open_bundle(find_bundle("sonic-base"))        # sonic.bundle.store
graph = bundle.read("unet/model.onnx")                 # its bytes, which have the manifest's digest
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sonic.bundle.arrays import read_array
from sonic.bundle.files import FileState, OpenedFile, digest_of, opened, read_all
from sonic.bundle.manifest import MANIFEST_NAME, FileInfo, Manifest
from sonic.errors import BundleError

_AGAIN = "copy or convert the bundle again"
_LARGEST_IN_MEMORY = (1 << 31) - 1  # bytes, the most that a graph can have


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    What is loaded from it is what was checked: what is read into memory is compared with its digest there;
    a file of weights that an engine reads itself has to be, before and after that, the same file that was
    read for its digest, unchanged.

    Attributes:
        directory: where it is.
        manifest: what it holds.
        check_digests: whether files are compared with the manifest's digests, rather than with sizes only.
        runs_code: whether the machine code of a compiled bundle may be run.
        manifest_sha256: of the manifest's file, in hexadecimal; empty for a bundle that is being made.
    """

    directory: Path
    manifest: Manifest
    check_digests: bool = True
    runs_code: bool = False
    manifest_sha256: str = ""
    _states: dict[str, FileState] = field(default_factory=dict, repr=False, compare=False)

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 (hexadecimal) of every file by its path, the manifest's included."""
        return {file.path: file.sha256 for file in self.manifest.files} | {
            MANIFEST_NAME: self.manifest_sha256
        }

    def graph_path(self, submodel: str) -> Path:
        """The graph file of a submodel."""
        return self.directory / self.manifest.submodels[submodel].files[0].path

    def read(self, path: str) -> bytes:
        """The content of a file, whose size and digest are the manifest's.

        Args:
            path: as in the manifest.

        Raises:
            BundleError: the file is missing, or was changed or replaced.
        """
        info = self._info(path)
        if info.bytes > _LARGEST_IN_MEMORY:
            raise BundleError(f"{self.directory / path} has {info.bytes:,} bytes, too many for a graph")
        with opened(self.directory, path) as file:
            if not self.check_digests:
                self.check(path, file.descriptor)
            content = read_all(file.descriptor, info.bytes)
        if len(content) != info.bytes:
            raise self._other_size(path, len(content))  # of which one more than expected is read
        if self.check_digests and hashlib.sha256(content).hexdigest() != info.sha256:
            raise self._changed(path)
        return content

    @contextmanager
    def opened(self, path: str) -> Iterator[OpenedFile]:
        """A checked file, open while something reads it; afterwards it has to be unchanged.

        Args:
            path: as in the manifest.

        Raises:
            BundleError: the file is missing, or was changed or replaced, before the block or in it.
        """
        with opened(self.directory, path) as file:
            self.check(path, file.descriptor)
            yield file
            self._check_unchanged(path, file.descriptor)

    def path(self, path: str) -> Path:
        """The path of a checked file, for readers that take nothing else; somebody may change the file later.

        Raises:
            BundleError: the file is missing, or was changed or replaced.
        """
        with self.opened(path):
            return self.directory / path

    def check(self, path: str, descriptor: int) -> None:
        """Compare an open file with the manifest; not again while it stays the same file, unchanged.

        Raises:
            BundleError: it has another size or digest, or, where no digests are compared, was replaced.
        """
        state = self.check_size(path, descriptor)
        if self._states.get(path) == state:
            return
        if not self.check_digests and path in self._states:
            raise self._changed_since(path)
        if self.check_digests and digest_of(descriptor) != self._info(path).sha256:
            raise self._changed(path)
        self._states[path] = state
        self._check_unchanged(path, descriptor)

    def check_size(self, path: str, descriptor: int) -> FileState:
        """Compare an open file's size with the manifest's; returns its state.

        Raises:
            BundleError: it has another size.
        """
        expected, state = self._info(path).bytes, FileState.of(descriptor)
        if state.size_bytes != expected:
            raise self._other_size(path, state.size_bytes)
        return state

    def asset(self, name: str) -> np.ndarray:
        """A small array in the bundle, such as ``mel_filters``, float32 (frequencies, mel bins).

        Raises:
            BundleError: the bundle has no such asset, or it is no array of finite numbers.
        """
        if name not in self.manifest.assets:
            raise BundleError(f"{self.directory} has no asset '{name}'; convert the checkpoint again")
        path = self.manifest.assets[name].path
        array = read_array(io.BytesIO(self.read(path)), f"{self.directory / path}")
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise BundleError(f"{self.directory / path} should hold finite float32 numbers; {_AGAIN}")
        return array

    def _info(self, path: str) -> FileInfo:
        for file in self.manifest.files:
            if file.path == path:
                return file
        raise BundleError(f"the manifest of {self.directory} lists no file {path}")

    def _check_unchanged(self, path: str, descriptor: int) -> None:
        if FileState.of(descriptor) != self._states[path]:
            raise self._changed_since(path)

    def _changed_since(self, path: str) -> BundleError:
        return BundleError(
            f"{self.directory / path} was changed or replaced after the bundle was opened; open it again"
        )

    def _other_size(self, path: str, size_bytes: int) -> BundleError:
        stated = self._info(path).bytes
        return BundleError(
            f"{self.directory / path} has {size_bytes} bytes, but the manifest says {stated}; {_AGAIN}"
        )

    def _changed(self, path: str) -> BundleError:
        return BundleError(f"{self.directory / path} was changed since the bundle was made; {_AGAIN}")
