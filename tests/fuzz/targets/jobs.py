"""A jobs file."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.errors import SonicError
from sonic.jobs.job import read_jobs


def one(data: bytes) -> None:
    try:
        jobs = read_jobs(in_file(data, "jobs.jsonl"))
    except SonicError:
        return
    for job in jobs:
        if job.usable:
            job.arguments  # noqa: B018
