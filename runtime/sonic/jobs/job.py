"""One line of a file of jobs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonic.bundle.store import sha256_of
from sonic.errors import InputError
from sonic.media.video import check_output_path
from sonic.options import GenerationOptions

#: What a job may say beside its three paths: the key, the argument of `SonicModel.generate`, its type.
JOB_OPTIONS: dict[str, tuple[str, type]] = {
    "duration": ("duration", float),
    "resolution": ("min_resolution", int),
    "steps": ("inference_steps", int),
    "seed": ("seed", int),
    "dynamic_scale": ("dynamic_scale", float),
    "motion_scale": ("motion_scale", float),
    "expand_ratio": ("expand_ratio", float),
    "lip_sync_correction": ("lip_sync_correction", bool),
    "smooth_motion": ("smooth_motion", bool),
    "noise": ("noise", str),
}


_PATHS = ("image", "audio", "output")


_TYPE_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "a path"}


@dataclass(frozen=True)
class Job:
    """One line of the file.

    Attributes:
        line: its number, from 1.
        image, audio, output: paths.
        options: the other arguments of `SonicModel.generate`.
    """

    line: int
    image: Path
    audio: Path
    output: Path
    options: dict[str, Any]

    def fingerprint(self, bundle_digest: str) -> str:
        """Changes when the bundle, an input file or an option does.

        Raises:
            InputError: an input file cannot be read.
        """
        files = [self.image, self.audio]
        files += [Path(self.options["noise"])] if "noise" in self.options else []
        options = {key: value for key, value in self.options.items() if key != "noise"}
        try:
            digests = [sha256_of(path) for path in files]
        except OSError as error:
            raise InputError(f"{error.filename}: the file cannot be read ({error.strerror})") from error
        text = json.dumps([bundle_digest, digests, options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_jobs(path: Path) -> list[Job]:
    """Read a file of jobs and check everything that can be checked before the first one starts.

    Raises:
        InputError: the file or a line cannot be used; it is named.
        OutputError: an output cannot be written where it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path}: the jobs cannot be read ({reason})") from error
    jobs = [
        _read_job(line, f"{path}, line {number}", number, path.parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not jobs:
        raise InputError(f"{path} holds no jobs; write one JSON object a line")
    first: dict[Path, int] = {}
    for job in jobs:
        output = job.output.absolute()
        if output in first:
            raise InputError(
                f"{path}, line {job.line}: the output {job.output} is that of line {first[output]} too"
            )
        first[output] = job.line
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
    for name, value in values.items():
        if name in _PATHS or value is None:
            continue
        argument, kind = JOB_OPTIONS[name]
        fits = isinstance(value, int | float if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{where}: '{name}' is {value!r}, but should be {_TYPE_NAMES[kind]}")
        options[argument] = str(folder / value) if kind is str else value
    try:
        GenerationOptions(
            duration_seconds=options.get("duration"),
            resolution_pixels=options.get("min_resolution"),
            steps=options.get("inference_steps"),
            seed=options.get("seed"),
            dynamic_scale=options.get("dynamic_scale", 1.0),
            motion_scale=options.get("motion_scale", 1.0),
            expand_ratio=options.get("expand_ratio"),
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    image, audio, output = (folder / values[name] for name in _PATHS)
    return Job(number, image, audio, output, options)
