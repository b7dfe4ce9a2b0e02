"""How commands end: errors become one sentence, warnings become notes, and signals clean up first."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from sonic.errors import SonicError, SonicWarning

# `docker stop`, systemd, Slurm and `timeout` send the first; closing a terminal sends the second.
_TERMINATING = tuple(
    number for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")) if number is not None
)
_INTERRUPTED_EXIT_CODE = 130


@contextmanager
def user_errors() -> Iterator[None]:
    """Print an error that the user can fix as one sentence (exit code 2), and warnings as notes.

    Ctrl-C, SIGTERM and SIGHUP unwind the stack, so that whatever is half-written is removed, and end with
    the exit code that shells expect (130, 143, 129). What was noted on an exception, such as how to go on, is
    printed after it.
    """

    def show(message: Warning | str, *_: object, **__: object) -> None:
        click.echo(f"note: {printable(message)}", err=True)

    with warnings.catch_warnings(), _signals_unwind():
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
        except KeyboardInterrupt as interrupt:
            click.echo("interrupted; no output was written", err=True)
            _print_notes(interrupt)
            sys.exit(_INTERRUPTED_EXIT_CODE)
        except _Terminated as terminated:
            _print_notes(terminated)
            raise


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
def _signals_unwind() -> Iterator[None]:
    """Make signals that end a process raise `_Terminated` in the main thread.

    A signal that is ignored, as under `nohup`, stays ignored.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        for other in _TERMINATING:  # a second signal must not interrupt the clean-up
            signal.signal(other, signal.SIG_IGN)
        click.echo(f"stopped by {signal.Signals(number).name}; no output was written", err=True)
        raise _Terminated(128 + number)

    if threading.current_thread() is not threading.main_thread():  # Python handles signals only there
        yield
        return
    before = {number: signal.getsignal(number) for number in _TERMINATING}
    replaced = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, before[number])
