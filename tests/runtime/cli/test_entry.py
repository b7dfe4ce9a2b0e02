"""Ctrl-C ends a command with one line and 130, while it imports its modules and afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LINE = "interrupted; no output was written\n"
INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
WHILE_IMPORTING = f"{INTERRUPT}\nimport time; time.sleep(60)"
SWALLOWED = f"""
import time
from sonic.cli.errors import user_errors
def main():
    with user_errors():
        try:
            {INTERRUPT}
        except KeyboardInterrupt:
            pass  # as some modules do while they are imported
        time.sleep(60)
"""
AS_ANOTHER_ERROR = f"""
from sonic.cli.errors import user_errors
def main():
    with user_errors():
        try:
            {INTERRUPT}
        except KeyboardInterrupt as error:
            raise ImportError("a module that cannot be imported") from error
"""
CLEANS_UP = f"""
import time
from pathlib import Path
from sonic.cli.errors import user_errors
def main():
    with user_errors():
        try:
            {INTERRUPT}
        finally:
            time.sleep(1.2)
            Path("cleaned").touch()
"""


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "slow_command.py").write_text(command)
    code = "from sonic.cli.entry import run; run('slow_command')"
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=50,
        # pytest under nohup ignores it, and children would as well
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("command", [WHILE_IMPORTING, SWALLOWED, AS_ANOTHER_ERROR, CLEANS_UP])
def test_an_interrupt_is_one_line_at_any_moment(command: str, tmp_path: Path) -> None:
    done = run(command, tmp_path)
    assert (done.returncode, done.stderr) == (130, LINE)
    assert (tmp_path / "cleaned").exists() == (command is CLEANS_UP)


def test_the_package_imports_nothing_before_a_command_begins() -> None:
    heavy = {"numpy", "click", "av", "onnxruntime"}
    code = f"import sys, sonic.cli.entry; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_public_names_are_there() -> None:
    import sonic

    assert all(getattr(sonic, name) is not None for name in sonic.__all__)
    assert set(sonic.__all__) <= set(dir(sonic))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sonic.nothing
