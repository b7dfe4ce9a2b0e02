"""Runs a module in a child process that can neither reach the network nor take the machine's memory or time.

    run_isolated("package.module", ["argument"], folder)

The child is a new session in a folder of its own, with a minimal environment, and `main(arguments)` of the
module is its work. What it may take is bounded twice: by the system (`setrlimit`), and by this process, which
kills the whole session when its time is over.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sonic.errors import SonicWarning
from sonic.sandbox.confinement import address_space_bytes, die_with_parent, limit

_KEPT_VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_LOG = "log.txt"
_OPEN = "network-is-reachable"
_LOG_SHOWN_CHARACTERS = 300
# Linux: sched.h
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


class IsolationError(Exception):
    """The child failed, or took more than it may; the message ends a sentence that starts with a file."""


@dataclass(frozen=True)
class Limits:
    """What a child may take.

    Attributes:
        seconds: of wall-clock time, and of processor time, from its start.
        memory_bytes: of address space, beyond what its libraries take.
        file_bytes: the largest file that it may write.
    """

    seconds: int = 60
    memory_bytes: int = 3 << 30
    file_bytes: int = 1 << 30


def run_isolated(module: str, arguments: Sequence[str], folder: Path, limits: Limits | None = None) -> None:
    """Call `main(arguments)` of a module in a child process that works in `folder`.

    Where the system offers no network namespaces, the child runs with the other limits, and a warning says
    so.

    Args:
        module: importable by name; its `main` takes a sequence of strings.
        arguments: for `main`.
        folder: an existing, empty folder that only the child uses.
        limits: what it may take.

    Raises:
        IsolationError: it failed, or exceeded a limit.
    """
    limits = limits or Limits()
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    # One thread, because only a process of one thread can leave its user namespace.
    environment |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment |= {"HOME": str(folder), "TMPDIR": str(folder), "ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-P", "-s", "-m", __name__, module, json.dumps(asdict(limits)), *arguments]
    with open(folder / _LOG, "wb") as log:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = child.wait(limits.seconds)
        except subprocess.TimeoutExpired as expired:
            raise IsolationError(f"takes longer than {limits.seconds} s") from expired
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code == -signal.SIGXCPU or code == -signal.SIGKILL:
        raise IsolationError(f"takes longer than {limits.seconds} s, or was killed for its memory")
    if code != 0:
        said = (folder / _LOG).read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
        raise IsolationError(
            f"ended with {_ending(code)}: {(said or ['nothing'])[-1][:_LOG_SHOWN_CHARACTERS]}"
        )
    if (folder / _OPEN).exists():
        warnings.warn(
            "the face detector was read in a process with limits on time and memory, but with a network, as "
            "this system offers no network namespaces",
            SonicWarning,
            stacklevel=2,
        )


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"the signal {signal.Signals(-code).name}"


def _leave_network() -> bool:
    """Enter a network namespace without any interface; whether that worked."""
    if sys.platform != "linux":
        return False
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    return any(unshare(flags) == 0 for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET))


def _main() -> None:
    name, limits = sys.argv[1], Limits(**json.loads(sys.argv[2]))
    if sys.platform == "linux":
        die_with_parent()
    if not _leave_network():
        Path(_OPEN).touch()
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, limits.seconds)
    limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    module = importlib.import_module(name)
    if sys.platform == "linux":  # after the import: libraries map more than they use
        limit(resource.RLIMIT_AS, address_space_bytes() + limits.memory_bytes)
    module.main(sys.argv[3:])


if __name__ == "__main__":
    _main()
