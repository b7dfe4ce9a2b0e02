"""How many threads ONNX Runtime starts for the calls of a session."""

from __future__ import annotations

from pathlib import Path

import pytest

import sonic
from sonic import options

TASKS = Path("/proc/self/task")


@pytest.mark.skipif(not TASKS.exists(), reason="threads are counted with Linux's /proc")
@pytest.mark.parametrize(
    ("memory", "threads", "at_once"),
    [("balanced", 3, 1), ("fast", None, 8), ("fast", 3, 2), ("fast", 4, 2), ("fast", 8, 1)],
)
def test_calls_at_the_same_time_have_their_threads_each(
    memory: str, threads: int | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "cpu_count", lambda: 8)
    model = sonic.load_model("sonic-tiny", memory=memory, threads=threads, check_digests=False)
    assert model.run.calls_at_once == at_once
    before = len(list(TASKS.iterdir()))
    with model.engine.open("audio2token"):
        started = len(list(TASKS.iterdir())) - before
    # The callers compute too.
    assert started + at_once == at_once * (threads or 1)
