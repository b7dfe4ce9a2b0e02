"""A seccomp filter: the process keeps the system calls that decoding needs, and loses all others for good.

There is no maintained binding of libseccomp that comes with it, so the few instructions of the filter are
put together here, in the format of classic BPF (linux/filter.h, linux/seccomp.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

from sonic.sandbox import system_calls as calls

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets in `struct seccomp_data`; arguments have 64 bits, of which BPF loads 32 (little endian here).
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_CLONE_THREAD = 0x10000
_X32_BIT = 0x40000000  # a second numbering of the same calls on x86-64
_PR_SET_NAME, _PR_SET_SECCOMP = 15, 22
_MODE_FILTER = 2  # of prctl
_SET_MODE_FILTER, _ALL_THREADS = 1, 1  # of seccomp
_Line = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def supported() -> bool:
    """Whether this is a processor that the filter is written for, and a kernel that takes filters."""
    if platform.machine() not in calls.ARCHITECTURES or sys.byteorder != "little":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    # The documented probe: no filter can be at address 0, so a kernel that knows filters says EFAULT.
    missing = libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0) != 0
    return bool(missing) and ctypes.get_errno() == errno.EFAULT


def program(machine: str, process: int) -> bytes:
    """The filter's instructions.

    Args:
        machine: "x86_64" or "aarch64".
        process: this process's number, the only one that `tgkill` may name; `abort` needs it.

    Raises:
        KeyError: another machine.
    """
    architecture, column = calls.ARCHITECTURES[machine]
    refuse = (_RETURN, 0, 0, _FAIL | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    lines: list[_Line] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL_PROCESS),
    ]
    for numbers in calls.ALLOWED.values():
        number = numbers[column]
        if number is not None:
            lines += [(_EQUAL, 0, 1, number), allow]
    # Without clone3, the C library uses clone, whose flags can be seen here: threads, but no processes.
    lines += [(_EQUAL, 0, 1, calls.CLONE3[column]), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    lines += _if_called(calls.CLONE[column], [*_argument(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), allow])
    lines += _if_called(calls.PRCTL[column], [*_argument(0), (_EQUAL, 0, 1, _PR_SET_NAME), allow])
    lines += _if_called(calls.TGKILL[column], [*_argument(0), (_EQUAL, 0, 1, process), allow])
    # Limits may be read (the C library asks for the stack's), not set: the new limit has to be NULL.
    null = [*_argument(2), (_EQUAL, 0, 3, 0), *_argument(2, high=True), (_EQUAL, 0, 1, 0), allow]
    lines += _if_called(calls.PRLIMIT[column], null)
    lines.append(refuse)
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def _argument(index: int, high: bool = False) -> list[_Line]:
    """Load one half of an argument."""
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * index + 4 * high)]


def _if_called(number: int, lines: list[_Line]) -> list[_Line]:
    """Run some lines for one call, and refuse what they let pass."""
    lines = [*lines, (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    return [(_EQUAL, 0, len(lines), number), *lines]


def install() -> None:
    """Filter the calls of all threads of this process from now on; `no_new_privs` has to be set.

    Raises:
        OSError: the system does not take the filter.
    """
    machine = platform.machine()
    instructions = program(machine, os.getpid())
    filter_ = _Program(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    number = calls.SECCOMP[calls.ARCHITECTURES[machine][1]]
    if libc.syscall(number, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(filter_)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
