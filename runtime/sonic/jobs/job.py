"""A jobs file: every line is a JSON object that describes one clip.

    {"image": "anna.png", "audio": "anna.wav", "output": "anna.mp4", "seed": 7, "steps": 20}

`image`, `audio` and `output` are paths, relative to the file's folder; the other keys are the options of
``sonic generate``, which are defined in :mod:`sonic.options`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sonic.bounded import parse_json, read_bounded
from sonic.errors import InputError
from sonic.media.checks import InputFiles, check_path
from sonic.media.video import check_output_path
from sonic.model import ClipArguments
from sonic.options import BatchOptions
from sonic.resume import FileIdentity
from sonic.schema import definitions
from sonic.storage.files import reason_of

#: What a jobs file may have: about 200,000 jobs.
LIMIT_BYTES = 16 << 20
_PATHS = ("image", "audio", "output")
#: The options that a job may have besides its paths, by key.
JOB_OPTIONS = {
    definition.name: definition
    for definition in definitions(ClipArguments)
    if definition.field not in (*_PATHS, "dump", *(item.name for item in fields(BatchOptions)))
}


@dataclass(frozen=True)
class Job:
    """One line of the file.

    Attributes:
        line: the line's number, from 1.
        image, audio, output: paths.
        options: the other arguments of `SonicModel.generate` that the line gives, by name.
    """

    line: int
    image: Path
    audio: Path
    output: Path
    options: dict[str, Any]

    @property
    def inputs(self) -> Iterator[Path]:
        """The files that the job reads."""
        yield from (self.image, self.audio)
        if "noise" in self.options:
            yield Path(self.options["noise"])

    @property
    def usable(self) -> bool:
        """Whether all paths can be paths; :meth:`check_paths` says which one cannot."""
        try:
            self.check_paths()
        except InputError:
            return False
        return True

    def check_paths(self) -> None:
        """Make sure that all paths can be paths, which a JSON string need not be.

        Raises:
            InputError: one cannot.
        """
        for path in (*self.inputs, self.output):
            check_path(path)

    @property
    def arguments(self) -> ClipArguments:
        """The arguments of `SonicModel.generate`."""
        return ClipArguments(self.image, self.audio, **self.options)

    def fingerprint(self, bundle_digest: str) -> str:
        """A digest that changes when the bundle, an input file or an option does.

        Raises:
            InputError: an input file cannot be read.
        """
        options = {key: value for key, value in self.options.items() if key != "noise"}
        digests = [FileIdentity.of(path).sha256 for path in self.inputs]
        text = json.dumps([bundle_digest, digests, options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_jobs(path: Path) -> list[Job]:
    """Read a jobs file and check everything that can be checked before the first job starts.

    Inputs are looked at when their job starts, so that a bad one makes its own job fail, and no other. This
    includes paths that no file can have.

    Raises:
        InputError: the file or a line cannot be used, or an output is an input; the message names it.
        OutputError: an output cannot be written.
    """
    try:
        # Windows editors put a byte order mark before UTF-8.
        lines = read_bounded(path, LIMIT_BYTES).decode("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason_of(error)
        raise InputError(f"{path}: the jobs cannot be read ({reason})") from error
    jobs = [
        _read_job(line, f"{path}, line {number}", number, path.parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not jobs:
        raise InputError(f"{path} holds no jobs; write one JSON object per line")
    check_outputs(path, jobs)
    return jobs


def check_outputs(path: Path, jobs: Sequence[Job]) -> None:
    """Make sure that the outputs of jobs can be written, and replace neither an input nor each other.

    Args:
        path: the jobs file, which counts as an input.
        jobs: those of the file.

    Raises:
        InputError: an output is an input of any job, or the output of another one.
        OutputError: an output cannot be written.
    """
    inputs = InputFiles([path, *(file for job in jobs for file in job.inputs)])
    first: dict[str, int] = {}
    writable: set[Path] = set()
    for job in jobs:
        if not job.usable:  # it fails alone
            continue
        # An output replaces what has its name, so that a link at its end does not matter here.
        output = os.path.join(os.path.realpath(job.output.parent), job.output.name)
        if output in first:
            raise InputError(
                f"{path}, line {job.line}: the output {job.output} is that of line {first[output]} too"
            )
        first[output] = job.line
        inputs.check(job.output)
        check_output_path(job.output, folder_is_writable=job.output.parent in writable)
        writable.add(job.output.parent)


def _read_job(text: str, where: str, number: int, folder: Path) -> Job:
    values = parse_json(text, f"{where}: this is no JSON object: it", InputError, allow_surrogates=True)
    if not isinstance(values, dict):
        raise InputError(f"{where}: this is {type(values).__name__}, but should be a JSON object")
    unknown = sorted(set(values) - {*_PATHS, *JOB_OPTIONS})
    if unknown:
        known = ", ".join((*_PATHS, *JOB_OPTIONS))
        raise InputError(f"{where}: '{unknown[0]}' is unknown; it should be one of {known}")
    for name in _PATHS:
        if not isinstance(values.get(name), str) or not values[name]:
            raise InputError(f"{where}: '{name}' should be the path of a file")
    options: dict[str, Any] = {}
    for name, definition in JOB_OPTIONS.items():
        value = values.get(name)
        if value is None:
            continue
        value = tuple(value) if definition.kind is tuple and isinstance(value, list) else value
        try:
            definition.check(value)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        options[definition.field] = str(folder / str(value)) if definition.kind is Path else value
    image, audio, output = (folder / values[name] for name in _PATHS)
    return Job(number, image, audio, output, options)
