"""The outcome of each job, in a file that grows by one line whenever a job ends."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sonic.bounded import read_bounded
from sonic.bundle.store import sha256_of
from sonic.errors import OutputError
from sonic.storage.files import reason_of

#: What a journal may have: about 200,000 reports.
LIMIT_BYTES = 128 << 20


@dataclass(frozen=True)
class JobReport:
    """The outcome of a job.

    Attributes:
        output: the output's absolute path.
        status: "done" or "failed".
        error: why it failed; "" if it did not.
        fingerprint: `Job.fingerprint`; "" if an input could not be read.
        frames: number of frames in the video.
        bytes, sha256: size and digest of the video file.
        finished_after_seconds: time from the run's start to the job's end.
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
        """Whether the job was done with the same inputs, and its file is still as it was written."""
        path = Path(self.output)
        return (
            self.status == "done"
            and self.fingerprint == fingerprint
            and path.is_file()
            and path.stat().st_size == self.bytes
            and sha256_of(path) == self.sha256
        )


def journal_path(jobs: Path) -> Path:
    """The default journal of a jobs file: ``jobs.jsonl`` -> ``jobs.report.jsonl``."""
    return jobs.with_name(f"{jobs.stem}.report.jsonl")


def read_journal(path: Path) -> dict[str, JobReport]:
    """The last report on every output, by output; truncated lines of a killed run are skipped.

    Raises:
        OutputError: the file exists, but is no regular file, larger than :data:`LIMIT_BYTES`, or cannot be
            read.
    """
    try:
        lines = read_bounded(path, LIMIT_BYTES).split(b"\n")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path}: the report cannot be continued ({reason_of(error)}); name another with --report"
        ) from error
    reports = {}
    for line in lines:
        try:
            report = JobReport(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(report.output, str):  # nothing else is used before it is compared
            reports[report.output] = report
    return reports


def append_to_journal(path: Path, report: JobReport) -> None:
    """Append a report; it is on disk when this returns.

    Raises:
        OutputError: the file cannot be written.
    """
    line = json.dumps(asdict(report)).encode() + b"\n"
    try:
        with open(path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # The truncated line of a killed run must not swallow this one.
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: the report cannot be written ({reason_of(error)})") from error
