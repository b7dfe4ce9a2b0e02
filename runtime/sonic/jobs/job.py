"""A jobs file: every line is a JSON object that describes one clip.

    {"image": "anna.png", "audio": "anna.wav", "output": "anna.mp4", "seed": 7, "steps": 20}

`image`, `audio` and `output` are paths, relative to the file's folder; the other keys are the options of
``sonic generate``, which are defined in :mod:`sonic.options`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonic.errors import InputError
from sonic.media.checks import check_not_an_input
from sonic.media.video import check_output_path
from sonic.model import ClipArguments
from sonic.resume import FileIdentity
from sonic.schema import definitions

_PATHS = ("image", "audio", "output")
#: The options that a job may have besides its paths, by key.
JOB_OPTIONS = {
    definition.name: definition
    for definition in definitions(ClipArguments)
    if definition.field not in (*_PATHS, "dump", "resume")
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

    Raises:
        InputError: the file or a line cannot be used, or an output is an input; the message names it.
        OutputError: an output cannot be written.
    """
    try:
        # Windows editors put a byte order mark before UTF-8.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path}: the jobs cannot be read ({reason})") from error
    jobs = [
        _read_job(line, f"{path}, line {number}", number, path.parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not jobs:
        raise InputError(f"{path} holds no jobs; write one JSON object per line")
    inputs = [path, *dict.fromkeys(file for job in jobs for file in job.inputs)]
    first: dict[Path, int] = {}
    for job in jobs:
        output = job.output.absolute()
        if output in first:
            raise InputError(
                f"{path}, line {job.line}: the output {job.output} is that of line {first[output]} too"
            )
        first[output] = job.line
        check_not_an_input(job.output, inputs)
        check_output_path(job.output)
    return jobs


def _read_job(text: str, where: str, number: int, folder: Path) -> Job:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: this is no JSON object ({error})") from error
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
