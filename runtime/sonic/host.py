"""What the processor can do, as Linux tells it, and which of its cores this process uses."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from functools import cache
from pathlib import Path

from sonic.errors import InputError


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


def parse_processors(text: str) -> set[int]:
    """Numbers of processors from a list such as "0-31,64", as `taskset` and `numactl` take it.

    Raises:
        InputError: it is no such list.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise InputError(f"the processors '{text}' should be numbers and ranges, such as 0-31,64")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def pin_to_processors(numbers: set[int]) -> None:
    """Let this process, and the threads that it will start, run on some processors only.

    Raises:
        InputError: this process may not use one of them, or the system cannot do it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("only Linux can choose the processors of a process; leave the option out")
    allowed = os.sched_getaffinity(0)
    missing = sorted(numbers - allowed)
    if missing:
        raise InputError(
            f"there is no processor {missing[0]} for this process; it may use {_ranges(sorted(allowed))}"
        )
    os.sched_setaffinity(0, numbers)


def numa_nodes(directory: Path = Path("/sys/devices/system/node")) -> list[set[int]]:
    """The processors of each NUMA node that this process may use; none where the system does not tell."""
    nodes = []
    for path in sorted(directory.glob("node[0-9]*/cpulist")):
        listed = path.read_text(encoding="ascii").strip()
        nodes.append(parse_processors(listed) & os.sched_getaffinity(0) if listed else set())
    return [node for node in nodes if node]


def stay_on_a_node(threads: int) -> None:
    """Keep this process on one NUMA node if so many threads have processors of their own there.

    Spread over several, they would wait for each other and for memory of other nodes. The node is the one
    that the process runs on already, so that several processes stay as the system has spread them.
    """
    nodes = numa_nodes() if hasattr(os, "sched_setaffinity") else []
    roomy = [node for node in nodes if len(node) >= threads]
    if len(nodes) > 1 and roomy:
        here = ctypes.CDLL(None).sched_getcpu()
        pin_to_processors(next((node for node in roomy if here in node), roomy[0]))


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as `parse_processors` takes them."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or its control group's if that is less."""
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
        cached = int(counts["inactive_file"]) + int(counts["active_file"])  # given back when needed
        if limit != "max":
            available = min(available, int(limit) - used + cached)
    except (OSError, ValueError, KeyError):  # no control groups of version 2
        pass
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return available if soft == resource.RLIM_INFINITY else min(available, soft)


def affinity_count() -> int:
    """Processors that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cpu_count() -> int:
    """Cores that this process may use: its affinity, or its control group's quota if that is less."""
    cores = affinity_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups of version 2
        pass
    return cores
