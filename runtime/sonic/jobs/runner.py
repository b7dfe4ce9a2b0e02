"""Many videos from a file of jobs: ``sonic batch jobs.jsonl``.

Every line of the file is one job, a JSON object:

    {"image": "anna.png", "audio": "anna.wav", "output": "anna.mp4", "seed": 7, "steps": 20}

`image`, `audio` and `output` are paths, relative to the file's folder; the other keys are the options
of ``sonic generate`` (`JOB_OPTIONS`). What becomes of each job is written to a report beside the file
as soon as it is known, so that a run that was stopped goes on with what is not done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from sonic.bundle.manifest import MANIFEST_NAME
from sonic.bundle.store import sha256_of
from sonic.errors import InputError, SonicError
from sonic.jobs.job import Job
from sonic.jobs.journal import JobReport, append_report, read_report
from sonic.media.video import Video, save_video
from sonic.model import SonicModel
from sonic.progress import Progress


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
                append_report(report, ended)
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
        for result in model.generate_many(clips, together=together, progress=progress, spool_directory=spool):
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
