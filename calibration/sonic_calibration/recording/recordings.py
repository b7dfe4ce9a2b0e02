"""Inputs of submodels from real generations, on disk.

    recordings = record(bundle, examples, Path("recordings"), RecordingOptions(steps=25))
    for sample in recordings.samples("unet"):
        sample.inputs["sample"], sample.tags["sigma"]

Every example is generated with the full-precision bundle, its guidance branches one after another; of
the calls of every submodel an even sample is kept, so that it covers the noise levels, the windows and
the branches. Finished examples are not generated again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sonic.bundle.manifest import MANIFEST_NAME
from sonic.bundle.store import sha256_of
from sonic.engines.base import Call
from sonic.errors import InputError, OutputError
from sonic.model import load_model
from sonic.progress import NoProgress, Progress
from sonic_calibration.recording.examples import ClipSettings, Example, generate_example
from sonic_calibration.recording.recorder import Recorder

_INDEX = "calls.json"


@dataclass(frozen=True)
class RecordingOptions:
    """What is generated for a recording, and how much of it is kept.

    Attributes:
        calls: of every submodel, at most this many of each example are kept.
        bytes: of all examples and submodels together, inputs and outputs; the first call is always kept.
        duration_seconds, resolution_pixels, steps: of each example; None for its own, or the bundle's.

    Raises:
        InputError: a number under 1.
    """

    calls: int = 8
    bytes: int = 2_000_000_000
    duration_seconds: float | None = None
    resolution_pixels: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.calls < 1 or self.bytes < 1:
            raise InputError("the calls and the bytes that are kept should be at least 1")

    @property
    def clip(self) -> ClipSettings:
        """What is generated."""
        return ClipSettings(self.duration_seconds, self.resolution_pixels, self.steps)


@dataclass(frozen=True)
class Sample:
    """One recorded call."""

    path: Path
    submodel: str
    tags: dict[str, Any]

    def arrays(self, kind: str) -> dict[str, np.ndarray]:
        """The call's inputs ("in") or outputs ("out") by name."""
        with np.load(self.path, allow_pickle=False) as file:
            return {key[len(kind) + 1 :]: file[key] for key in file if key.startswith(f"{kind}.")}


@dataclass(frozen=True)
class Recordings:
    """Everything that was recorded; `digest` is of all that it was made from."""

    folder: Path
    digest: str

    def samples(self, submodel: str) -> list[Sample]:
        """The kept calls of a submodel, example by example."""
        return [
            Sample(folder / entry["file"], submodel, entry["tags"])
            for folder in sorted(self.folder.glob("[0-9]*"))
            for entry in json.loads((folder / _INDEX).read_text())
            if entry["submodel"] == submodel
        ]


def record(
    bundle: Path,
    examples: Sequence[Example],
    folder: Path,
    options: RecordingOptions = RecordingOptions(),
    submodels: Collection[str] = ("unet", "vae_decoder"),
    progress: Progress | None = None,
) -> Recordings:
    """Generate every example and keep what the submodels were given.

    Args:
        bundle: the full-precision bundle.
        examples: portraits and speech, at least one.
        folder: of the recordings; those of another bundle, other examples or options are replaced.
        options: how much.
        submodels: those that are recorded.
        progress: shows the examples.

    Raises:
        InputError: an example cannot be used.
        BundleError: the bundle cannot be run.
        OutputError: the folder cannot be written.
    """
    if not examples:
        raise InputError("there are no examples to record; give at least one portrait and one recording")
    progress = progress or NoProgress()
    files = [_digest(path) for example in examples for path in (example.image, example.audio)]
    key = [sha256_of(bundle / MANIFEST_NAME), files, sorted(submodels), asdict(options)]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    _prepare(folder, digest)
    model = load_model(bundle, memory="low")
    with progress.stage("recording", len(examples)) as advance:
        for index, example in enumerate(examples):
            target = folder / f"{index:04d}"
            if not target.exists():
                recorder = _Filter(Recorder(options.calls, _share(options, examples, submodels)), submodels)
                generate_example(model, example, options.clip, recorder)
                _write(target, recorder.recorder, index)
            advance()
    return Recordings(folder, digest)


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: the example cannot be read ({error.strerror})") from error


class _Filter:
    """An observer that passes on the calls of some submodels."""

    def __init__(self, recorder: Recorder, submodels: Collection[str]) -> None:
        self.recorder, self._submodels = recorder, submodels

    def __call__(self, call: Call) -> None:
        if call.submodel in self._submodels:
            self.recorder(call)


def _share(options: RecordingOptions, examples: Sequence[Example], submodels: Collection[str]) -> int:
    return max(1, options.bytes // (len(examples) * len(submodels)))


def _prepare(folder: Path, digest: str) -> None:
    """An empty folder, unless it holds recordings of the same digest."""
    name = folder / "digest"
    try:
        if folder.exists() and not (name.exists() and name.read_text() == digest):
            if any(folder.iterdir()) and not name.exists():
                raise OutputError(f"{folder} exists and holds no recordings; choose another folder")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name.write_text(digest)
    except OSError as error:
        raise OutputError(f"cannot write {folder} ({error.strerror})") from error


def _write(target: Path, recorder: Recorder, example: int) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    index = []
    for submodel, calls in sorted(recorder.calls.items()):
        for number, call in enumerate(calls):
            name = f"{submodel}_{number:04d}.npz"
            arrays = {f"in.{key}": array for key, array in call.inputs.items()}
            arrays |= {f"out.{key}": array for key, array in call.outputs.items()}
            np.savez(partial / name, **arrays)  # type: ignore[arg-type]
            tags = {"example": example} | dict(call.tags)
            index.append({"file": name, "submodel": submodel, "tags": tags})
    (partial / _INDEX).write_text(json.dumps(index, indent=1))
    os.replace(partial, target)
