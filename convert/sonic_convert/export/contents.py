"""Reads everything in a checkpoint once, before the work that takes minutes begins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sonic.progress import Progress
from sonic.storage.files import replace_file
from sonic_convert.checkpoint.checkpoint import COMPONENTS, Checkpoint
from sonic_convert.modules.face import load_face_detector


def check_contents(checkpoint: Checkpoint, progress: Progress, known: Path | None = None) -> None:
    """Check the weights of all components, and that the face detector can be read.

    Args:
        checkpoint: opened.
        progress: shows the components.
        known: a file that remembers what was checked, by name, size and time of modification.

    Raises:
        InputError: weights cannot be read or are not finite, or the face detector is not one.
    """
    checked = _read_known(known)
    with progress.stage("checking weights", len(COMPONENTS)) as advance:
        for component in COMPONENTS:
            path = checkpoint.weights_file(component)
            status = path.stat()
            key = f"{component} {path.resolve()} {status.st_size} {status.st_mtime_ns}"
            if key not in checked:
                if component == "face_detector":
                    load_face_detector(path)
                else:
                    with _one_thread():
                        checkpoint.check_weights(component)
                checked.add(key)
            advance()
    if known is not None:
        text = json.dumps(sorted(checked))
        replace_file(known, lambda partial: partial.write_text(text))


@contextmanager
def _one_thread() -> Iterator[None]:
    # One thread reads as fast as the memory gives; more wait for each other after every tensor.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read_known(known: Path | None) -> set[str]:
    try:
        return set() if known is None else set(json.loads(known.read_text()))
    except (OSError, ValueError, TypeError):
        return set()
