"""What a confined process cannot do any more: real processes that try."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sonic.sandbox import seccomp
from sonic.sandbox.process import sandbox_report

ATTEMPTS = {
    "open a file": "open('/etc/hostname')",
    "make a file": "open(FOLDER + '/made', 'w')",
    "list a folder": "os.listdir('/')",
    "open a socket": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "make a pair of sockets": "socket.socketpair()",
    "start a process": "os.fork()",
    "start a program": "os.execv(sys.executable, [sys.executable, '-c', 'print(7)'])",
    "end its parent": "os.kill(os.getppid(), 9)",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_CPU, (99999, 99999))",
    "remove a file": "os.remove(FOLDER + '/there')",
}


def run(code: str, folder: Path | None = None, memory_bytes: int = 300_000_000, seconds: float = 20) -> str:
    """Run code in a confined process; returns its output, or its exit code if it is not 0."""
    script = "import os, sys, socket, resource, threading, ctypes\n"
    script += f"from sonic.sandbox.confinement import confine\nFOLDER = {str(folder)!r}\n"
    script += f"confine({seconds}, {memory_bytes})\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    return done.stdout.strip() if done.returncode == 0 else str(done.returncode)


needs_seccomp = pytest.mark.skipif(not seccomp.supported(), reason="this system has no seccomp")


@needs_seccomp
def test_attempts_fail(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    lines = [
        f"try:\n    {attempt}\nexcept (OSError, ValueError): pass\nelse: print({name!r})"
        for name, attempt in ATTEMPTS.items()
    ]
    assert run("\n".join([*lines, "print('end')"]), tmp_path) == "end"
    assert sorted(os.listdir(tmp_path)) == ["there"]


@needs_seccomp
def test_decoding_goes_on() -> None:
    code = """
    done = []
    thread = threading.Thread(target=done.append, args=(1,))
    thread.start()
    thread.join()
    bytearray(50_000_000)
    print(done, os.read(0, 10), end="")
    """
    assert run(code) == "[1] b''"


def test_memory_is_limited() -> None:
    code = """
    try:
        bytearray(200_000_000)
    except MemoryError:
        print("no memory")
    """
    assert run(code, memory_bytes=100_000_000) == "no memory"


def test_processor_time_is_limited() -> None:
    assert run("while True: pass", seconds=0.3) == str(-signal.SIGXCPU)


def test_the_report_says_what_is_possible() -> None:
    report = sandbox_report()
    if seccomp.supported():
        assert "seccomp" in report["by"]
        assert report["possible"] == {"files": False, "network": False, "processes": False}
    elif platform.system() == "Linux":
        assert report["possible"]["processes"]


def test_without_seccomp_landlock_keeps_files_closed() -> None:
    """As on a processor that the filter is not written for."""
    code = """
    from sonic.sandbox import seccomp, confinement, probe
    seccomp.supported = lambda: False
    by = confinement.confine(9, 300_000_000)
    print("Landlock" in str(by), probe.possible()["files"])
    """
    script = f"import sys\nsys.path[:] = {sys.path!r}\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    landlock, files = done.stdout.split()
    assert (landlock == "True") != (files == "True")
