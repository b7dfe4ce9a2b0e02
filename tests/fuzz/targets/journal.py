"""The report of a batch, with which it goes on."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.jobs.journal import read_journal


def one(data: bytes) -> None:
    read_journal(in_file(data, "jobs.report.jsonl"))
