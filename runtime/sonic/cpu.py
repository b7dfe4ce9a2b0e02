"""What the processor can do, as Linux tells it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def cpu_features() -> frozenset[str]:
    """Names of instruction set extensions, such as "asimddp" and "bf16" (aarch64) or "avx512f" (x86).

    Empty where the system does not tell.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() in ("Features", "flags"):  # aarch64, x86
            return frozenset(values.split())
    return frozenset()


def has_bfloat16_products() -> bool:
    """Whether this is an aarch64 processor that multiplies matrices in bfloat16."""
    return platform.machine() in ("aarch64", "arm64") and "bf16" in cpu_features()
