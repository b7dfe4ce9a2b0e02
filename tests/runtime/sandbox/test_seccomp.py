"""The seccomp filter, run by an interpreter of its instructions: for both processors, on either."""

from __future__ import annotations

import errno
import struct

import pytest

from sonic.sandbox import system_calls
from sonic.sandbox.seccomp import program

ALLOW, KILL = 0x7FFF0000, 0x80000000
PROCESS = 4321
# Calls that must fail, among others: openat, socket, connect, execve, kill, ptrace, unshare, setrlimit.
FORBIDDEN = {
    "x86_64": (2, 257, 41, 42, 59, 62, 101, 272, 160, 425, 57, 58, 322),
    "aarch64": (56, 198, 203, 221, 129, 117, 97, 164, 425, 281),
}
CLONE, PRLIMIT, PRCTL, TGKILL = (
    dict(zip(("x86_64", "aarch64"), pair, strict=True))
    for pair in ((56, 220), (302, 261), (157, 167), (234, 131))
)
MACHINES = ["x86_64", "aarch64"]


def verdict(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter returns for a system call."""
    lines = list(struct.iter_unpack("<HBBI", program(machine, PROCESS)))
    if architecture is None:
        architecture = system_calls.ARCHITECTURES[machine][0]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    position = accumulator = 0
    while True:
        code, if_true, if_false, value = lines[position]
        position += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[
            code
        ]
        position += if_true if holds else if_false


def refused(code: int) -> int:
    return 0x00050000 | code


@pytest.mark.parametrize("machine", MACHINES)
def test_the_listed_calls_pass(machine: str) -> None:
    column = MACHINES.index(machine)
    for name, numbers in system_calls.ALLOWED.items():
        if numbers[column] is not None:
            assert verdict(machine, numbers[column]) == ALLOW, name


@pytest.mark.parametrize("machine", MACHINES)
def test_all_others_fail(machine: str) -> None:
    column = MACHINES.index(machine)
    listed = {numbers[column] for numbers in system_calls.ALLOWED.values()}
    special = {CLONE[machine], PRLIMIT[machine], 435}
    assert not listed & set(FORBIDDEN[machine])
    for number in {*range(500), *FORBIDDEN[machine]} - listed - special:
        assert verdict(machine, number) == refused(errno.EPERM), number
    assert verdict(machine, 435, 0x10000) == refused(errno.ENOSYS)  # clone3: the C library then uses clone


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_may_start_and_processes_may_not(machine: str) -> None:
    assert verdict(machine, CLONE[machine], 0x3D0F00) == ALLOW  # the flags of pthread_create
    assert verdict(machine, CLONE[machine], 17) == refused(errno.EPERM)  # fork
    assert verdict(machine, CLONE[machine], 0x40000000) == refused(errno.EPERM)  # a new network


@pytest.mark.parametrize("machine", MACHINES)
def test_some_calls_pass_for_some_arguments(machine: str) -> None:
    assert verdict(machine, PRLIMIT[machine], 0, 3, 0, 0x7FFF12345678) == ALLOW  # reads a limit
    for new_limit in (0x7FFF12345678, 0x100000000, 0x10):
        assert verdict(machine, PRLIMIT[machine], 0, 3, new_limit, 0) == refused(errno.EPERM)
    assert verdict(machine, PRCTL[machine], 15) == ALLOW  # names a thread
    assert verdict(machine, PRCTL[machine], 1, 0) == refused(errno.EPERM)  # outlives its parent
    assert verdict(machine, TGKILL[machine], PROCESS, PROCESS, 6) == ALLOW
    assert verdict(machine, TGKILL[machine], 1, 1, 9) == refused(errno.EPERM)


def test_other_numberings_are_killed() -> None:
    assert verdict("x86_64", 0x40000000) == KILL  # x32
    assert verdict("x86_64", 0, architecture=0x40000003) == KILL  # 32-bit x86, where 0 is another call
    assert verdict("aarch64", 63, architecture=0x40000028) == KILL  # 32-bit ARM
