"""Records the inputs and outputs of submodels on disk while example clips are generated.

    recordings = record(bundle, examples, Path("recordings"), RecordingOptions(calls=4))
    for sample in recordings.samples("unet"):
        sample.arrays("in")["sample"], sample.tags["sigma"]

Every example is generated with the full-precision bundle, one guidance branch per call. An even sample of
each submodel's calls is kept, so that it covers all noise levels, windows and guidance branches. Examples
that are already recorded are not generated again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sonic.bundle.manifest import MANIFEST_NAME
from sonic.bundle.store import sha256_of
from sonic.engines.watched import Call
from sonic.errors import InputError, OutputError
from sonic.model import load_model
from sonic.options import DEFAULT_CLIP, GenerationOptions
from sonic.progress import NoProgress, Progress
from sonic.storage.files import replacing
from sonic_calibration.recording.examples import Example, generate_example
from sonic_calibration.recording.recorder import Recorder

_INDEX = "calls.json"


@dataclass(frozen=True)
class RecordingOptions:
    """What is generated for calibration, and how much of it is kept.

    Attributes:
        calls: calls of each submodel to keep per example, at most.
        bytes: limit for all examples and submodels together, inputs and outputs; the first call is always
            kept.
        clip: how each example is generated.

    Raises:
        InputError: a number is below 1.
    """

    calls: int = 8
    bytes: int = 2_000_000_000
    clip: GenerationOptions = DEFAULT_CLIP

    def __post_init__(self) -> None:
        if self.calls < 1 or self.bytes < 1:
            raise InputError(
                f"{self.calls} calls and {self.bytes} bytes are to be kept; both should be at least 1"
            )


@dataclass(frozen=True)
class Sample:
    """One recorded call.

    Attributes:
        path: the file of its arrays.
        submodel: the submodel's name.
        tags: where in the clip it happened: its example, step, sigma, window, guidance branches.
    """

    path: Path
    submodel: str
    tags: dict[str, Any]

    def arrays(self, kind: str) -> dict[str, np.ndarray]:
        """Read the call's inputs (kind "in") or outputs (kind "out") by name."""
        with np.load(self.path, allow_pickle=False) as file:
            return {key[len(kind) + 1 :]: file[key] for key in file if key.startswith(f"{kind}.")}


@dataclass(frozen=True)
class Recordings:
    """All recorded calls.

    Attributes:
        folder: where they are stored.
        digest: SHA-256 of the bundle, the examples, the submodels and the options, in hexadecimal.
    """

    folder: Path
    digest: str

    def samples(self, submodel: str) -> list[Sample]:
        """The recorded calls of a submodel, in the order of the examples; empty if there are none."""
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
    """Generate every example and record calls of the submodels; an interrupted recording resumes.

    Args:
        bundle: the full-precision bundle's folder.
        examples: portraits and speech, at least one.
        folder: where the recordings are stored; recordings of another bundle, other examples, submodels or
            options in it are replaced.
        options: what is generated and how much is kept.
        submodels: the submodels to record.
        progress: reports the finished examples.

    Raises:
        InputError: there are no examples, or one cannot be used.
        BundleError: the bundle cannot be run.
        OutputError: the folder cannot be written, or holds something else.
    """
    if not examples:
        raise InputError("there are no examples to record; give at least one portrait and one recording")
    progress = progress or NoProgress()
    files = [_file_digest(path) for example in examples for path in (example.image, example.audio)]
    key = [sha256_of(bundle / MANIFEST_NAME), files, sorted(submodels), asdict(options)]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    _prepare_folder(folder, digest)
    model = load_model(bundle, memory="low")
    with progress.stage("recording", len(examples)) as advance:
        for index, example in enumerate(examples):
            target = folder / f"{index:04d}"
            if not target.exists():
                recorder = Recorder(options.calls, _byte_budget(options, examples, submodels))
                generate_example(model, example, options.clip, _SubmodelFilter(recorder, submodels))
                _write_calls(target, recorder, index)
            advance()
    return Recordings(folder, digest)


def _file_digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: the example cannot be read ({error.strerror})") from error


class _SubmodelFilter:
    """An observer that passes on only the calls of some submodels."""

    def __init__(self, recorder: Recorder, submodels: Collection[str]) -> None:
        self._recorder, self._submodels = recorder, submodels

    def __call__(self, call: Call) -> None:
        if call.submodel in self._submodels:
            self._recorder(call)


def _byte_budget(options: RecordingOptions, examples: Sequence[Example], submodels: Collection[str]) -> int:
    """Bytes of each submodel and example."""
    return max(1, options.bytes // (len(examples) * len(submodels)))


def _prepare_folder(folder: Path, digest: str) -> None:
    """Create the folder; delete recordings of another digest."""
    digest_file = folder / "digest"
    try:
        if folder.exists() and not (digest_file.exists() and digest_file.read_text() == digest):
            if any(folder.iterdir()) and not digest_file.exists():
                raise OutputError(f"{folder} exists and holds no recordings; choose another folder")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        digest_file.write_text(digest)
    except OSError as error:
        raise OutputError(f"cannot write {folder} ({error.strerror})") from error


def _write_calls(target: Path, recorder: Recorder, example: int) -> None:
    """Write the kept calls of one example; `target` appears only when it is complete."""
    index = []
    with replacing(target) as partial:
        partial.mkdir()
        for submodel, calls in sorted(recorder.calls.items()):
            for number, call in enumerate(calls):
                name = f"{submodel}_{number:04d}.npz"
                arrays = {f"in.{key}": array for key, array in call.inputs.items()}
                arrays |= {f"out.{key}": array for key, array in call.outputs.items()}
                np.savez(partial / name, **arrays)  # type: ignore[arg-type]
                tags = {"example": example} | dict(call.tags)
                index.append({"file": name, "submodel": submodel, "tags": tags})
        (partial / _INDEX).write_text(json.dumps(index, indent=1))
