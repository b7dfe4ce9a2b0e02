"""What became of each job, in a file that grows by one line as each job ends."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sonic.bundle.store import sha256_of
from sonic.errors import OutputError


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

    def still_holds(self, fingerprint: str) -> bool:
        """Whether the job is done, from the same inputs, and its file is as it was written."""
        path = Path(self.output)
        return (
            self.status == "done"
            and self.fingerprint == fingerprint
            and path.is_file()
            and path.stat().st_size == self.bytes
            and sha256_of(path) == self.sha256
        )


def journal_path(jobs: Path) -> Path:
    """Where a batch reports: ``jobs.jsonl`` -> ``jobs.report.jsonl``."""
    return jobs.with_name(f"{jobs.stem}.report.jsonl")


def read_journal(path: Path) -> dict[str, JobReport]:
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


def append_to_journal(path: Path, report: JobReport) -> None:
    """Add a report, and have it on disk before this returns.

    Raises:
        OutputError: the file cannot be written.
    """
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
