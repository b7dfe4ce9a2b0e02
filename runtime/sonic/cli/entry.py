"""Starts the commands: from their first moment, Ctrl-C ends them with one line and the exit code 130.

Importing a command's modules takes a second or more. Nothing that would have to be cleaned up exists in that
time; from then on :func:`sonic.cli.errors.user_errors` lets Ctrl-C unwind the stack.
"""

from __future__ import annotations

import importlib
import os
import signal
from types import FrameType

INTERRUPTED_EXIT_CODE = 130
INTERRUPTED = "interrupted; no output was written"


def main() -> None:
    """The command ``sonic``."""
    run("sonic.cli.main")


def run(module: str) -> None:
    """Import a module and call its `main()`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored, as under nohup, it stays so
        signal.signal(signal.SIGINT, end_at_once)
    try:
        importlib.import_module(module).main()
    finally:
        if signal.getsignal(signal.SIGINT) is end_at_once:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # it has ended already, and with its own exit code


def end_at_once(_number: int, _frame: FrameType | None) -> None:
    """End the process; an exception could be swallowed or reported by what is being imported."""
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(INTERRUPTED_EXIT_CODE)
