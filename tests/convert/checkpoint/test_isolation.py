"""The child process: what it may not do, and how its end is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sonic_convert.checkpoint.isolation import IsolationError, Limits, run_isolated

LIMITS = Limits(seconds=30, memory_bytes=200 << 20, file_bytes=1 << 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits = LIMITS) -> None:
    """Run code as the `main` of a module."""
    modules = folder.parent / "modules"
    modules.mkdir()
    lines = "\n".join(f"    {line}" for line in code.splitlines())
    (modules / "isolated_code.py").write_text(
        f"import os, socket, sys, time\ndef main(arguments):\n{lines}\n"
    )
    path = os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    run_isolated("isolated_code", ["one", "two"], folder, limits)


def test_it_works_in_its_folder_with_few_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    run("open('seen', 'w').write(' '.join([*arguments, *os.environ]))", folder, monkeypatch)
    seen = (folder / "seen").read_text().split()
    assert seen[:2] == ["one", "two"]
    assert "SECRET_TOKEN" not in seen


def test_it_has_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("open('seen', 'w').write(repr(socket.if_nameindex()))", folder, monkeypatch)
    if (folder / "network-is-reachable").exists():
        pytest.skip("this system has no network namespaces")
    assert "eth" not in (folder / "seen").read_text()
    assert "'lo'" in (folder / "seen").read_text()  # which is down


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("while True: pass", "takes longer than 2 s"),
        ("time.sleep(1000)", "takes longer than 2 s"),
        ("bytearray(1 << 30)", "MemoryError"),
        ("open('big', 'wb').write(bytes(2 << 20))", "File too large|SIGXFSZ"),
        ("os.abort()", "SIGABRT"),
        ("sys.exit('a reason')", "exit code 1: a reason"),
    ],
)
def test_its_end_is_told(code: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(2, LIMITS.memory_bytes, LIMITS.file_bytes) if "2 s" in said else LIMITS
    with pytest.raises(IsolationError, match=said):
        run(code, folder, monkeypatch, limits)


def test_its_own_children_end_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import subprocess\nopen('pid', 'w').write(str(subprocess.Popen([sys.executable, '-c', 'input()'], "
    )
    code += "stdin=subprocess.PIPE).pid))"
    run(code, folder, monkeypatch)
    pid = int((folder / "pid").read_text())
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
        if not state.strip() or state.strip().startswith("Z"):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} still runs under {sys.executable}")
