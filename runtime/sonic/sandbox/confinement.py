"""Confining a process before it reads what strangers made: limits, no new files, no network, no programs.

    confine(seconds=60, memory_bytes=800_000_000)

What the system does not have is left out; :mod:`sonic.sandbox.probe` tells what is then still possible.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import struct
from contextlib import suppress
from pathlib import Path

from sonic.sandbox import seccomp

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _SIGKILL = 1, 38, 9
# The three calls of Landlock have the same numbers on all architectures.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_VERSION = 1
# How many rights to files each version of Landlock knows (linux/landlock.h); later ones know 16.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_LATEST_FILE_RIGHTS = 16
_NEW_USER_NAMESPACE, _NEW_NETWORK = 0x10000000, 0x40000000
#: Open descriptors: the three standard ones, and a few that libraries make.
_DESCRIPTORS = 16


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def confine(seconds: float, memory_bytes: int) -> list[str]:
    """Confine this process for good, as far as the system can.

    Args:
        seconds: of processor time, from now on.
        memory_bytes: of address space beyond what the process has now.

    Returns:
        What confines it, beside the limits: "Landlock 7", "seccomp", "a network namespace".
    """
    used = []
    # The signal of the lower limit (SIGXCPU) says why the process ended.
    limit(resource.RLIMIT_CPU, math.ceil(_processor_seconds() + seconds), margin=1)
    limit(resource.RLIMIT_AS, address_space_bytes() + memory_bytes)
    limit(resource.RLIMIT_FSIZE, 0)  # the result goes through a pipe
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, _DESCRIPTORS)
    libc = ctypes.CDLL(None, use_errno=True)
    filters = seccomp.supported()
    # Refused where users may make no namespaces; not needed beside a filter.
    if not filters and libc.unshare(_NEW_USER_NAMESPACE | _NEW_NETWORK) == 0:
        used.append("a network namespace")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return used
    if version := _enter_landlock(libc):
        used.append(f"Landlock {version}")
    if filters:
        with suppress(OSError):  # refused in some containers
            seccomp.install()
            used.append("seccomp")
    return used


def limit(kind: int, value: int, margin: int = 0) -> None:
    """Lower a limit, and to `margin` above it the one up to which it may be raised; lower ones stay."""
    soft, hard = resource.getrlimit(kind)
    lower = [value if old == resource.RLIM_INFINITY else min(value, old) for old in (soft, hard)]
    most = value + margin if hard == resource.RLIM_INFINITY else min(value + margin, hard)
    resource.setrlimit(kind, (min(lower), most))


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def address_space_bytes() -> int:
    """What this process has mapped."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _enter_landlock(libc: ctypes.CDLL) -> int:
    """Give up opening, making and removing files, and everything else that this version can refuse.

    Returns:
        The version of Landlock; 0 where it is missing, switched off or refused.
    """
    version = max(0, libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION))
    if not version:
        return 0
    files = (1 << _FILE_RIGHTS.get(version, _LATEST_FILE_RIGHTS)) - 1
    connections = 0b11 if version >= 4 else 0  # bind and connect TCP
    scopes = 0b11 if version >= 6 else 0  # abstract sockets, signals to others
    rules = struct.pack("<QQQ", files, connections, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, rules, len(rules), 0)
    if ruleset < 0:
        return 0
    refused = libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)  # no rule was added: nothing is allowed
    os.close(ruleset)
    return 0 if refused else int(version)
