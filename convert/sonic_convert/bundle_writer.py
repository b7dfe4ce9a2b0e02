"""Writes a bundle: everything goes to a folder beside it, which then replaces it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sonic.bundle.manifest import MANIFEST_NAME, FileInfo, Manifest
from sonic.bundle.manifest_file import manifest_text
from sonic.bundle.store import file_info
from sonic.errors import OutputError
from sonic.storage.claims import claimed
from sonic.storage.files import replace_file, replacing_folder


def check_target(bundle: Path) -> None:
    """Make sure that only a bundle or an empty folder would be replaced.

    Raises:
        OutputError: something else is there.
    """
    if not bundle.exists():
        return
    if not bundle.is_dir() or (any(bundle.iterdir()) and not (bundle / MANIFEST_NAME).is_file()):
        raise OutputError(f"{bundle} exists and is no bundle; choose another name, so that nothing is lost")


@contextmanager
def making(bundle: Path, work: Path | None = None) -> Iterator[Path]:
    """Yields the work folder, ``BUNDLE.work`` by default; until the end no other process may use the two.

    Raises:
        OutputError: something else than a bundle is at `bundle`, or another process makes it or uses `work`.
    """
    check_target(bundle)
    work = work or bundle.with_name(f"{bundle.name}.work")
    with ExitStack() as claims:
        claims.enter_context(claimed(bundle, "the bundle"))
        claims.enter_context(claimed(work, "the work folder"))
        yield work


@contextmanager
def new_bundle(bundle: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which replaces `bundle` at the end, or is removed after an error.

    Raises:
        OutputError: the bundle cannot be written, or another process writes it.
    """
    with claimed(bundle, "the bundle"), replacing_folder(bundle) as partial:
        yield partial


def copy_graph(graph: Path, folder: Path, bundle: Path) -> tuple[FileInfo, ...]:
    """Copy a graph, and its weights file if it has one, into a folder of the bundle.

    Copied, not linked: damage to a bundle must not reach the files that a new conversion resumes from.
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
    """Replace a bundle's manifest in one step.

    Raises:
        OutputError: it cannot be written.
    """
    text = manifest_text(manifest.to_json())
    replace_file(bundle / MANIFEST_NAME, lambda partial: partial.write_text(text, encoding="utf-8"))
