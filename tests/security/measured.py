"""Runs a hostile input as a process of its own, and measures it: what it prints, takes and leaves behind."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from security.hostile import HostileInput

HERE = Path(__file__).parent
#: The limits that the documentation states.
LIMIT_MEGABYTES, LIMIT_SECONDS = 1000, 10
#: When a process is killed: a machine that does other things too takes longer.
KILL_AFTER_SECONDS = 9 * LIMIT_SECONDS

# Runs in a small process, because the peak memory of a child begins with that of the process that starts it.
_WATCH = """
import json, os, resource, subprocess, sys, time
import psutil

result, limit, *command = sys.argv[1:]
started = time.monotonic()
process = subprocess.Popen(command, start_new_session=True)
peak, timed_out = 0, False
while True:
    ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    if ended:
        break
    try:
        one = psutil.Process(process.pid)
        peak = max(peak, sum(each.memory_info().rss for each in [one, *one.children(recursive=True)]))
    except psutil.Error:
        pass
    if not timed_out and time.monotonic() - started > float(limit):
        timed_out = True
        os.killpg(process.pid, 9)
    time.sleep(0.03)
with open(result, "w") as file:
    json.dump({
        "exit_code": os.waitstatus_to_exitcode(status),
        "timed_out": timed_out,
        "peak_bytes": max(peak, usage.ru_maxrss * 1024),
        "seconds": time.monotonic() - started,
    }, file)
"""


@dataclass(frozen=True)
class Measured:
    """What a hostile input achieved.

    Attributes:
        exit_code: of the command.
        output, errors: what it printed.
        timed_out: whether it had to be killed.
        peak_megabytes: of all its processes together.
        seconds: how long it took.
        left_behind: files that are new, or were changed, outside and inside the case's folder.
    """

    exit_code: int
    output: str
    errors: str
    timed_out: bool
    peak_megabytes: float
    seconds: float
    left_behind: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The last line that was printed."""
        return (self.errors.strip().splitlines() or [""])[-1]


def all_rows() -> list[HostileInput]:
    """The rows of every module of hostile inputs."""
    rows: list[HostileInput] = []
    for path in sorted(HERE.glob("hostile_*.py")):
        rows += importlib.import_module(f"security.{path.stem}").ROWS
    return rows


@functools.cache
def without_network() -> tuple[str, ...]:
    """The beginning of a command that takes its network interfaces away; empty where that is not allowed."""
    for prefix in (("unshare", "--net"), ("unshare", "--map-root-user", "--net")):
        try:
            subprocess.run([*prefix, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return prefix
    return ()


def measure(row: HostileInput, folder: Path) -> Measured:
    """Run one row in an empty folder.

    The command has a home, a temporary folder and a working directory of its own, which it has to leave
    empty, no network interface where the system allows to take them away, and the inputs in a fifth folder.
    """
    places = {name: folder / name for name in ("home", "temporary", "cwd", "in")}
    for place in places.values():
        place.mkdir()
    arguments = list(row.command(places["in"]))
    before = _contents(folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "ORT_", "XDG_"))}
    environment |= {"HOME": str(places["home"]), "TMPDIR": str(places["temporary"])}
    result = folder.with_name(f"{folder.name}.result")
    command = [*without_network(), sys.executable, "-m", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, str(result), str(KILL_AFTER_SECONDS), *command],
        env=environment,
        cwd=places["cwd"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    after = _contents(folder)
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    measured = json.loads(result.read_text())
    return Measured(
        measured["exit_code"],
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
        measured["timed_out"],
        measured["peak_bytes"] / 1e6,
        measured["seconds"],
        tuple(sorted(changed)),
    )


def _contents(folder: Path) -> dict[str, tuple[int, ...]]:
    """What identifies every file, link and folder below a folder, without reading any.

    PyTorch makes an empty folder for its compiler when it is imported, which does not count.
    """
    found = {}
    for path in folder.rglob("*"):
        if path.name.startswith("torchinductor_") and not any(path.iterdir()):
            continue
        status = path.lstat()
        # The times of a folder change as temporary files come and go.
        times = () if path.is_dir() and not path.is_symlink() else (status.st_mtime_ns, status.st_size)
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_ino, *times)
    return found
