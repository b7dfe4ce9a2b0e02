"""How many cores a process may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonic import host
from sonic.host import cpu_count


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("300000 100000", 3), ("50000 100000", 1), ("9900000 100000", 8)]
)
def test_a_quota_limits_the_cores(quota: str, cores: int, monkeypatch) -> None:
    monkeypatch.setattr(host, "affinity_count", lambda: 8)
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: quota)
    assert cpu_count() == cores
