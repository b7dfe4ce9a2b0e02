"""Generating many videos from a jobs file: ``sonic batch jobs.jsonl``.

    reports = run_batch(model, read_jobs(path), journal_path(path))

The outcome of each job is written to a journal as soon as it is known, so that a run that was stopped can be
resumed with the jobs that are not done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Lock

from sonic.bundle.store import sha256_of
from sonic.errors import InputError, OutputError, SonicError
from sonic.jobs.job import Job
from sonic.jobs.journal import JobReport, append_to_journal, read_journal
from sonic.media.checks import InputFiles
from sonic.media.credentials import Credentials
from sonic.media.video import Video, save_video
from sonic.model import SonicModel
from sonic.options import DEFAULT_BATCH, BatchOptions
from sonic.progress import Progress
from sonic.resume import ClipCheckpoint, checkpoint_path
from sonic.scan import check_scanner
from sonic.storage.files import reason_of
from sonic.storage.owned import remove_abandoned

Report = Callable[[Job, JobReport], None]


def run_batch(
    model: SonicModel,
    jobs: list[Job],
    journal: Path,
    together: int = 4,
    progress: Progress | None = None,
    on_report: Report = lambda job, report: None,
    options: BatchOptions = DEFAULT_BATCH,
    credentials: Credentials | None = None,
) -> list[JobReport]:
    """Run every job that is not done; a job that fails does not stop the others.

    The first clip of a group goes first; while the others are denoised, it is decoded and encoded, and its
    video is there. Each clip has a checkpoint beside its output, and what killed runs left there is removed.

    Args:
        model: the loaded bundle.
        jobs: from :func:`sonic.jobs.job.read_jobs`.
        journal: a file of one JSON object per line, which grows by one line as each job ends.
        together: how many clips are denoised together.
        progress: shows the stages.
        on_report: called with each job and its report, including jobs that were done before.
        options: with `resume`, jobs that are done are left out, and those that were stopped go on; if not,
            all start over.
        credentials: with what to sign the videos.

    Returns:
        The reports, in the order of the jobs.

    Raises:
        InputError: the journal is an input or an output of a job, or the virus scanner cannot be reached.
        OutputError: the journal cannot be read or written.
    """
    InputFiles(file for job in jobs for file in (*job.inputs, job.output)).check(journal)
    if options.scan is not None:
        check_scanner(options.scan)
    batch = _Batch(model, journal, on_report, credentials)
    open_jobs = batch.open_jobs(jobs, options.resume)
    for folder in {job.output.absolute().parent for job, _ in open_jobs}:
        remove_abandoned(folder)
    encoding: deque[Future[None]] = deque()
    results = model.generate_many(
        [
            replace(
                job.arguments,
                checkpoint=checkpoint_path(job.output),
                resume=options.resume,
                scan=options.scan,
            )
            for job, _ in open_jobs
        ],
        together=together,
        progress=progress,
        spool_directory=journal.absolute().parent,
    )
    with closing(results), ThreadPoolExecutor(1) as encoder:
        for result in results:
            job, fingerprint = open_jobs[result.index]
            if result.video is None:
                assert result.error is not None
                batch.fail(job, result.error, fingerprint)
                continue
            assert result.checkpoint is not None
            encoding.append(encoder.submit(batch.encode, job, fingerprint, result.video, result.checkpoint))
            while len(encoding) > together:  # the frames of waiting videos are on disk; limits how many
                encoding.popleft().result()
        for future in encoding:
            future.result()
    return [batch.reports[job.line] for job in jobs]


class _Batch:
    """The reports of one run; jobs end in the encoder thread and in the denoising thread."""

    def __init__(
        self, model: SonicModel, journal: Path, on_report: Report, credentials: Credentials | None
    ) -> None:
        self._journal, self._on_report, self._credentials = journal, on_report, credentials
        self._quality = model.constants.video.h264_constant_rate_factor
        self._bundle_digest = model.engine.bundle.manifest_sha256
        self._started = time.monotonic()
        self._ending = Lock()
        self.reports: dict[int, JobReport] = {}

    def open_jobs(self, jobs: list[Job], resume: bool) -> list[tuple[Job, str]]:
        """Return the jobs that are not done, each with its fingerprint, and report the others.

        Without `resume`, all are open.
        """
        known = read_journal(self._journal) if resume else {}
        found: list[tuple[Job, str]] = []
        for job in jobs:
            try:
                job.check_paths()
                fingerprint = job.fingerprint(self._bundle_digest)
            except InputError as error:
                self.fail(job, error, "")
                continue
            before = known.get(_output_key(job))
            if before is not None and before.still_holds(fingerprint):
                self._end(job, before, new=False)
            else:
                found.append((job, fingerprint))
        return found

    def encode(self, job: Job, fingerprint: str, video: Video, checkpoint: ClipCheckpoint) -> None:
        """Write a job's video, and report the job."""
        with checkpoint:
            try:
                save_video(
                    video,
                    job.output,
                    constant_rate_factor=self._quality,
                    credentials=self._credentials,
                )
                size, digest = job.output.stat().st_size, sha256_of(job.output)
            except SonicError as error:
                self.fail(job, error, fingerprint)
                return
            except OSError as error:  # such as a file that somebody removed at once
                reason = reason_of(error)
                self.fail(job, OutputError(f"{job.output}: the video cannot be read ({reason})"), fingerprint)
                return
            report = JobReport(
                _output_key(job), "done", "", fingerprint, len(video), size, digest, self._seconds_so_far()
            )
            self._end(job, report)
            checkpoint.remove()

    def fail(self, job: Job, error: SonicError, fingerprint: str) -> None:
        """Report a job that failed."""
        self._end(
            job,
            JobReport(
                _output_key(job),
                "failed",
                str(error),
                fingerprint,
                finished_after_seconds=self._seconds_so_far(),
            ),
        )

    def _end(self, job: Job, report: JobReport, new: bool = True) -> None:
        with self._ending:
            self.reports[job.line] = report
            if new:
                append_to_journal(self._journal, report)
            self._on_report(job, report)

    def _seconds_so_far(self) -> float:
        return round(time.monotonic() - self._started, 3)


def _output_key(job: Job) -> str:
    return str(job.output.absolute())
