"""Many videos from a file of jobs: ``sonic batch jobs.jsonl``.

Every line of the file is one job, a JSON object:

    {"image": "anna.png", "audio": "anna.wav", "output": "anna.mp4", "seed": 7, "steps": 20}

`image`, `audio` and `output` are paths, relative to the file's folder; the other keys are the options
of ``sonic generate`` (`JOB_OPTIONS`). What becomes of each job is written to a report beside the file
as soon as it is known, so that a run that was stopped goes on with what is not done.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from sonic.bundle import sha256_of
from sonic.errors import InputError, OutputError, SonicError
from sonic.manifest import MANIFEST_NAME
from sonic.model import SonicModel
from sonic.options import GenerationOptions
from sonic.progress import Progress
from sonic.video import Video, check_output_path, save_video

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


@dataclass(frozen=True)
class JobReport:
    """What became of a job.

    Attributes:
        output: as an absolute path.
        status: "done" or "failed".
        error: why it failed; "" where it did not.
        fingerprint: `Job.fingerprint`; "" where an input could not be read.
        frames: of the video.
        bytes, sha256: of its file.
        finished_after_seconds: from the run's start to the job's end.
    """

    output: str
    status: str
    error: str = ""
    fingerprint: str = ""
    frames: int = 0
    bytes: int = 0
    sha256: str = ""
    finished_after_seconds: float = 0.0


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


def report_path(jobs: Path) -> Path:
    """Where `run_batch` reports: ``jobs.jsonl`` -> ``jobs.report.jsonl``."""
    return jobs.with_name(f"{jobs.stem}.report.jsonl")


def run_batch(
    model: SonicModel,
    jobs: list[Job],
    report: Path,
    together: int = 4,
    progress: Progress | None = None,
    tell: Callable[[Job, JobReport], None] = lambda job, report: None,
) -> list[JobReport]:
    """Run every job that is not done, and go on where one fails.

    A job is done when the report says so, nothing that it was made from has changed, and its file is
    still the one that was written. While some clips are denoised, those before are decoded, and those
    before these are encoded.

    Args:
        model: the loaded bundle.
        jobs: from `read_jobs`.
        report: a file of one JSON object a line, which grows by one line as each job ends.
        together: clips that are denoised together.
        progress: shows the stages.
        tell: called with each job and its report, also for those done before.

    Returns:
        The reports, in the order of the jobs.

    Raises:
        OutputError: the report cannot be written.
    """
    started = time.monotonic()
    bundle_digest = sha256_of(model.engine.bundle.directory / MANIFEST_NAME)
    before = read_report(report)
    reports: dict[int, JobReport] = {}

    ending = Lock()

    def end(job: Job, ended: JobReport, new: bool = True) -> None:
        with ending:
            reports[job.line] = ended
            if new:
                _append(report, ended)
            tell(job, ended)

    def failed(job: Job, error: SonicError, fingerprint: str) -> JobReport:
        seconds = round(time.monotonic() - started, 3)
        return JobReport(_key(job), "failed", str(error), fingerprint, finished_after_seconds=seconds)

    open_jobs: list[tuple[Job, str]] = []
    for job in jobs:
        try:
            fingerprint = job.fingerprint(bundle_digest)
        except InputError as error:
            end(job, failed(job, error, ""))
            continue
        known = before.get(_key(job))
        if known is not None and known.fingerprint == fingerprint and _is_whole(known):
            end(job, known, new=False)
        else:
            open_jobs.append((job, fingerprint))

    def finish(job: Job, fingerprint: str, video: Video) -> None:
        quality = model.constants.video.h264_constant_rate_factor
        try:
            save_video(video, job.output, constant_rate_factor=quality)
        except SonicError as error:
            end(job, failed(job, error, fingerprint))
            return
        done = JobReport(
            _key(job), "done", "", fingerprint, len(video), job.output.stat().st_size,
            sha256_of(job.output), round(time.monotonic() - started, 3),
        )  # fmt: skip
        end(job, done)

    clips = [{"image": job.image, "audio": job.audio, **job.options} for job, _ in open_jobs]
    spool = report.absolute().parent
    finishing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as encoder:
        for result in model.generate_many(
            clips, together=together, progress=progress, spool_directory=spool
        ):
            job, fingerprint = open_jobs[result.index]
            if result.video is None:
                assert result.error is not None
                end(job, failed(job, result.error, fingerprint))
                continue
            finishing.append(encoder.submit(finish, job, fingerprint, result.video))
            while len(finishing) > together:
                finishing.popleft().result()
        for future in finishing:
            future.result()
    return [reports[job.line] for job in jobs]


def read_report(path: Path) -> dict[str, JobReport]:
    """The last report on every output; lines that a kill cut short are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    reports = {}
    for line in lines:
        try:
            report = JobReport(**json.loads(line))
        except (ValueError, TypeError):
            continue
        reports[report.output] = report
    return reports


def _append(path: Path, report: JobReport) -> None:
    line = json.dumps(asdict(report)).encode() + b"\n"
    try:
        with open(path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A line that a kill cut short must not swallow this one.
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path}: the report cannot be written ({error.strerror})") from error


def _key(job: Job) -> str:
    return str(job.output.absolute())


def _is_whole(report: JobReport) -> bool:
    """Whether a finished job's file is still there as it was written."""
    path = Path(report.output)
    return (
        report.status == "done"
        and path.is_file()
        and path.stat().st_size == report.bytes
        and sha256_of(path) == report.sha256
    )
