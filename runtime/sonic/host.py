"""The machine that this process runs on: instruction sets, processors, quotas, NUMA nodes and memory."""

from __future__ import annotations

import os
import platform
import resource
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from sonic.errors import InputError

_CONTROL_GROUP = Path("/sys/fs/cgroup")  # version 2; in a container, the container's own


@cache
def cpu_features() -> frozenset[str]:
    """Names of instruction set extensions, such as "asimddp" and "bf16" (aarch64) or "avx512f" (x86).

    Empty where the system does not say.
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
    """Whether this is an aarch64 processor with bfloat16 matrix multiplication."""
    return platform.machine() in ("aarch64", "arm64") and "bf16" in cpu_features()


def affinity() -> set[int] | None:
    """The processors that this process may run on; None where the system has no such restriction."""
    process = psutil.Process()
    return set(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else None


def affinity_count() -> int:
    """How many processors this process may run on."""
    return len(affinity() or ()) or os.cpu_count() or 1


def cpu_count() -> int:
    """Cores that this process may use: its affinity, or its control group's quota if that is less."""
    cores = affinity_count()
    try:
        quota, period = (_CONTROL_GROUP / "cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups of version 2
        pass
    return cores


def parse_processors(text: str) -> set[int]:
    """Parse a list of processor numbers such as "0-31,64", in the format of `taskset` and `numactl`.

    Raises:
        InputError: the text is not such a list.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise InputError(f"the processors '{text}' should be numbers and ranges, such as 0-31,64")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def pin_to_processors(numbers: set[int]) -> None:
    """Restrict this process, and the threads that it will start, to some processors.

    Raises:
        InputError: this process may not use one of them, or the system does not support this.
    """
    allowed = affinity()
    if allowed is None:
        raise InputError(
            f"{platform.system()} cannot restrict a process to some processors; leave the option out"
        )
    missing = sorted(numbers - allowed)
    if missing:
        raise InputError(
            f"there is no processor {missing[0]} for this process; it may use {_ranges(sorted(allowed))}"
        )
    psutil.Process().cpu_affinity(sorted(numbers))


def numa_nodes(directory: Path = Path("/sys/devices/system/node")) -> list[set[int]]:
    """The processors of each NUMA node that this process may use; none where the system does not say."""
    allowed = affinity() or set()
    nodes = []
    for path in sorted(directory.glob("node[0-9]*/cpulist")):
        listed = path.read_text(encoding="ascii").strip()
        nodes.append(parse_processors(listed) & allowed if listed else set())
    return [node for node in nodes if node]


def stay_on_a_node(threads: int) -> None:
    """Keep this process on one NUMA node if that node has a processor for each of its threads.

    Spread over several nodes, the threads would wait for each other and for memory of other nodes. The node
    that the process already runs on is preferred, so that several processes stay where the system put them.
    """
    nodes = numa_nodes()
    large_enough = [node for node in nodes if len(node) >= threads]
    if len(nodes) > 1 and large_enough:
        here = psutil.Process().cpu_num()
        pin_to_processors(next((node for node in large_enough if here in node), large_enough[0]))


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes."""
    return int(psutil.Process().memory_info().rss)


def total_bytes() -> int:
    """Memory of the machine, in bytes."""
    return int(psutil.virtual_memory().total)


def available_bytes() -> int:
    """Bytes of memory that this process may still take: the machine's, or its control group's if less."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (_CONTROL_GROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CONTROL_GROUP / "memory.current").read_text(encoding="ascii"))
        lines = (_CONTROL_GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        counts = dict(line.split() for line in lines)
        cached = int(counts["inactive_file"]) + int(counts["active_file"])  # reclaimed when needed
        if limit != "max":
            available = min(available, int(limit) - used + cached)
    except (OSError, ValueError, KeyError):  # no control groups of version 2
        pass
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return available if soft == resource.RLIM_INFINITY else min(available, soft)


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as a list that `parse_processors` reads."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def distribution_version(name: str) -> str:
    """The version of an installed distribution; "unknown" if it is not installed under this name."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # such as another build of ONNX Runtime
        return "unknown"
