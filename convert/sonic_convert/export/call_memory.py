"""Resident memory of a graph's calls, measured in a separate process that imports only the runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sonic.errors import SonicError


@dataclass(frozen=True)
class CallMemory:
    """Resident bytes of a process that loads one graph and calls it.

    Attributes:
        start_bytes: before the graph is loaded.
        loading_bytes: the peak while it is loaded.
        loaded_bytes: after it is loaded.
        call_bytes: the peak during every call.
    """

    start_bytes: int
    loading_bytes: int
    loaded_bytes: int
    call_bytes: tuple[int, ...]

    @property
    def peak_bytes(self) -> int:
        """The peak of the whole process."""
        return max(self.loading_bytes, *self.call_bytes)


def measure_calls(graph: Path, calls: Sequence[Mapping[str, Sequence[int]]]) -> CallMemory | None:
    """Load a graph in ONNX Runtime as the runtime does, and call it with inputs of these shapes, by name.

    Returns:
        None where the system does not let a process measure itself (not Linux, or a container that forbids
        it).

    Raises:
        SonicError: the process failed.
    """
    given = {"graph": str(graph), "calls": [dict(shapes) for shapes in calls]}
    done = subprocess.run([sys.executable, "-c", _PROBE, json.dumps(given)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SonicError(f"the memory of {graph} cannot be measured ({done.stderr.strip()[-300:]})")
    measured = json.loads(done.stdout)
    if measured is None:
        return None
    start, loading, loaded, *peaks = measured
    return CallMemory(start, loading, loaded, tuple(peaks))


# Peak resident memory from /proc: writing 5 to clear_refs resets the peak (Linux, proc(5)).
_PROBE = """
import json, sys
import numpy as np
from sonic.engines.onnx import open_session, session_options

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def forget_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

given = json.loads(sys.argv[1])
try:
    forget_peak()
    results = [status("VmRSS")]
except OSError:
    print("null")
    sys.exit()
session = open_session(given["graph"], session_options())
results += [status("VmHWM"), status("VmRSS")]
for shapes in given["calls"]:
    feeds = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    forget_peak()
    session.run(None, feeds)
    results.append(status("VmHWM"))
print(json.dumps(results))
"""
