"""How many threads a call gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonic import host, options
from sonic.host import cpu_count
from sonic.options import RunOptions


@pytest.mark.parametrize(
    ("quota", "cores", "threads"),
    [("max 100000", 8, None), ("300000 100000", 3, 3), ("50000 100000", 1, 1), ("9900000 100000", 8, None)],
)
def test_a_quota_limits_the_threads(quota: str, cores: int, threads: int | None, monkeypatch) -> None:
    monkeypatch.setattr(host, "affinity_count", lambda: 8)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: quota)
    assert cpu_count() == cores
    assert RunOptions().threads_of_a_call == threads
    assert RunOptions(threads=5).threads_of_a_call == 5
    assert RunOptions(memory="fast").threads_of_a_call == 1
    assert RunOptions(memory="fast").calls_at_once == cores


def test_processors_that_are_not_the_processs_get_no_threads(monkeypatch) -> None:
    monkeypatch.setattr(options, "cpu_count", lambda: 3)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert RunOptions().threads_of_a_call == 3


def test_threads_of_all_calls_are_counted(monkeypatch) -> None:
    monkeypatch.setattr(options, "cpu_count", lambda: 8)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert RunOptions().threads_at_once == 8
    assert RunOptions(threads=3).threads_at_once == 3
    assert RunOptions(memory="fast").threads_at_once == 8
    assert RunOptions(memory="fast", threads=3).threads_at_once == 6
