"""How many threads ONNX Runtime starts for the calls of a session."""

from __future__ import annotations

from pathlib import Path

import pytest

import sonic
from sonic.engines.base import Parallelism

TASKS = Path("/proc/self/task")


def started_threads(parallelism: Parallelism | None, **run: object) -> int:
    """How many threads opening a session starts."""
    model = sonic.load_model("sonic-tiny", check_digests=False, **run)
    before = len(list(TASKS.iterdir()))
    with model.engine.open("audio2token", parallelism):
        return len(list(TASKS.iterdir())) - before


@pytest.mark.skipif(not TASKS.exists(), reason="threads are counted with Linux's /proc")
@pytest.mark.parametrize(("at_once", "threads"), [(1, 1), (1, 3), (8, 8), (2, 6), (3, 8), (1, 8)])
def test_calls_at_the_same_time_share_the_threads(at_once: int, threads: int) -> None:
    # The callers compute too.
    assert started_threads(Parallelism(at_once, threads)) + at_once == threads


@pytest.mark.skipif(not TASKS.exists(), reason="threads are counted with Linux's /proc")
def test_one_call_at_a_time_has_the_cores_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonic.engines.onnx.cpu_count", lambda: 5)
    assert started_threads(None) + 1 == 5
    assert started_threads(None, threads=3) + 1 == 3
