"""How commands end: errors become one sentence, warnings become notes, and signals clean up first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from sonic.cli.entry import INTERRUPTED, INTERRUPTED_EXIT_CODE, end_at_once
from sonic.errors import SonicError, SonicWarning

# `docker stop`, systemd, Slurm and `timeout` send the first; closing a terminal sends the second.
_TERMINATING = tuple(
    number for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")) if number is not None
)
_INSIST_EVERY_SECONDS = 0.5


@contextmanager
def user_errors() -> Iterator[None]:
    """Print an error that the user can fix as one sentence (exit code 2), and warnings as notes.

    Ctrl-C, SIGTERM and SIGHUP unwind the stack, so that whatever is half-written is removed, and end with
    the exit code that shells expect (130, 143, 129). What was noted on an exception, such as how to go on, is
    printed after it.
    """

    def show(message: Warning | str, *_: object, **__: object) -> None:
        click.echo(f"note: {printable(message)}", err=True)

    with warnings.catch_warnings(), _signals_unwind() as interrupts:
        warnings.simplefilter("always", SonicWarning)
        warnings.showwarning = show
        try:
            yield
        except SonicError as error:
            click.echo(f"error: {printable(error)}", err=True)
            _print_notes(error)
            sys.exit(2)
        except OSError as error:  # such as a full disk or an unreadable folder
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"error: {printable(f'{where}{error.strerror or error}')}", err=True)
            _print_notes(error)
            sys.exit(2)
        except MemoryError as error:
            click.echo(
                "error: there is not enough memory; choose a smaller input or a lower resolution", err=True
            )
            _print_notes(error)
            sys.exit(2)
        except _Terminated as terminated:
            _print_notes(terminated)
            raise
        except BaseException as error:
            # Of modules that were being imported, an interrupt may come as another error.
            if not isinstance(error, KeyboardInterrupt) and not interrupts:
                raise
            click.echo(INTERRUPTED, err=True)
            _print_notes(error)
            sys.exit(INTERRUPTED_EXIT_CODE)


def printable(message: object) -> str:
    """A message for a terminal: characters that could control it, as in names of files, are spelled out."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(message)
    )


class _Terminated(SystemExit):
    """The end of a process that was told to end by a signal."""


def _print_notes(error: BaseException) -> None:
    for note in dict.fromkeys(getattr(error, "__notes__", ())):
        click.echo(f"note: {printable(note)}", err=True)


@contextmanager
def _signals_unwind() -> Iterator[list[int]]:
    """Make signals that end a process raise `_Terminated` in the main thread, and Ctrl-C KeyboardInterrupt.

    A signal that is ignored, as under `nohup`, stays ignored. The list that is yielded gets the interrupts.
    """
    interrupts: list[int] = []
    ended = threading.Event()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        interrupts.append(number)
        if len(interrupts) == 1:
            threading.Thread(target=_insist, args=(number, ended), daemon=True).start()
        if not _is_unwinding():  # or it would interrupt the clean-up
            raise KeyboardInterrupt

    def end(number: int, _frame: FrameType | None) -> None:
        for other in _TERMINATING:  # a second signal must not interrupt the clean-up
            signal.signal(other, signal.SIG_IGN)
        click.echo(f"stopped by {signal.Signals(number).name}; no output was written", err=True)
        raise _Terminated(128 + number)

    if threading.current_thread() is not threading.main_thread():  # Python handles signals only there
        yield interrupts
        return
    started = signal.getsignal(signal.SIGINT)
    before = {number: signal.getsignal(number) for number in _TERMINATING}
    replaced = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, end)
    if started in (signal.default_int_handler, end_at_once):
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        ended.set()
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, started)
        for number in replaced:
            signal.signal(number, before[number])


def _insist(number: int, ended: threading.Event) -> None:
    """Signal this process until it ends: some modules swallow an interrupt while they are imported."""
    while not ended.wait(_INSIST_EVERY_SECONDS):
        os.kill(os.getpid(), number)


def _is_unwinding() -> bool:
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
        error = error.__context__
    return error is not None
