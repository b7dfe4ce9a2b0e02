"""Writing a bundle: everything in a folder beside it, which then takes its place."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sonic.bundle.manifest import MANIFEST_NAME, FileInfo, Manifest
from sonic.bundle.store import file_info
from sonic.errors import OutputError
from sonic.storage.files import replacing, write_json


def check_target(bundle: Path) -> None:
    """Only a bundle, an empty folder or nothing may be replaced.

    Raises:
        OutputError: there is something else.
    """
    if not bundle.exists():
        return
    if not bundle.is_dir() or (any(bundle.iterdir()) and not (bundle / MANIFEST_NAME).is_file()):
        raise OutputError(f"{bundle} exists and is no bundle; choose another name, so that nothing is lost")


@contextmanager
def new_bundle(bundle: Path) -> Iterator[Path]:
    """A folder to fill, which replaces `bundle` at the end, or is removed at an error.

    Raises:
        OutputError: the bundle cannot be written.
    """
    with replacing(bundle) as partial:
        partial.mkdir(parents=True)
        yield partial


def copy_graph(graph: Path, folder: Path, bundle: Path) -> tuple[FileInfo, ...]:
    """Copy a graph, and the file of its weights where it has one, into a folder of the bundle.

    A copy, not a link: damage to a bundle must not reach what a new conversion resumes from.
    """
    folder.mkdir(exist_ok=True)
    files = []
    for path in (graph, graph.with_name(f"{graph.name}.data")):
        if path.exists():
            shutil.copyfile(path, folder / path.name)
            files.append(file_info(folder / path.name, bundle))
    return tuple(files)


def copy_files(files: Iterable[FileInfo], source: Path, bundle: Path) -> None:
    """Copy files whose paths are relative to the folder `source` to the same paths of the bundle."""
    for file in files:
        (bundle / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file.path, bundle / file.path)


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Replace a bundle's manifest at once.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(bundle / MANIFEST_NAME, manifest.to_json())
