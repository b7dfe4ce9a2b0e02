"""The numbers of the system calls that decoding needs, by processor: a seccomp filter's list.

Whatever is not listed fails with EPERM: opening files, sockets, starting programs and processes, signals to
others, changing limits.
"""

from __future__ import annotations

#: (x86-64, aarch64); None where the architecture does not have the call. From the kernel's tables
#: (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # input and output, on descriptors that are open
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "close": (3, 57),
    "fstat": (5, 80),
    "poll": (7, None),
    "ppoll": (271, 73),
    # memory
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "membarrier": (324, 283),
    # threads of this process (clone: see below)
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "set_tid_address": (218, 96),
    "gettid": (186, 178),
    "getpid": (39, 172),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # signals to itself
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # time, chance and facts
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
}
# Allowed in some cases only; see `sonic.sandbox.seccomp.program`.
CLONE, CLONE3, PRLIMIT = (56, 220), (435, 435), (302, 261)
PRCTL, TGKILL = (157, 167), (234, 131)
#: The call that installs the filter.
SECCOMP = (317, 277)
#: The kernel's name of each architecture (AUDIT_ARCH_*), and its place in the pairs above.
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
