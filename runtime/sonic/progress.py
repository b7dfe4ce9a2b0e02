"""Progress of long work: the stage, how far it is, and how long it will still take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars

Advance = Callable[[], None]
# Where output is not a terminal: the first line of a stage comes early, so that the log soon says how long it
# will take; later ones come at most this often.
_FIRST_LINE_SECONDS = 2.0
_LINES_EVERY_SECONDS = 30.0


class Progress(Protocol):
    """Follows the stages of one job."""

    def stage(self, name: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Enter a stage of `total` steps; the context manager yields a function to call after each step.

        `done` of the steps were done before, by a run that was stopped.
        """


@runtime_checkable
class Announcer(Protocol):
    """Progress that can show a line; that is not asked of every class that follows stages."""

    def announce(self, line: str) -> None:
        """Show a line between stages."""


def announce(progress: Progress, line: str) -> None:
    """Show a line between stages, where the progress can."""
    if isinstance(progress, Announcer):
        progress.announce(line)


class NoProgress:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Enter a stage of `total` steps."""
        yield lambda: None


class ConsoleProgress:
    """A bar for each stage on a terminal; elsewhere a line every 30 s, and one for each finished stage."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, markup=False, highlight=False, emoji=False)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Enter a stage of `total` steps, `done` of them by an earlier run."""
        shown = self._bar if self.console.is_terminal else self._lines
        with shown(name, total, done) as advance:
            yield advance

    def announce(self, line: str) -> None:
        """Print a line."""
        self._print(line)

    @contextmanager
    def _bar(self, name: str, total: int, done: int) -> Iterator[Advance]:
        with RichBars(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        ) as bars:
            task = bars.add_task(name, total=total, completed=done)
            yield lambda: bars.advance(task)

    @contextmanager
    def _lines(self, name: str, total: int, done: int) -> Iterator[Advance]:
        started, before, finished = time.monotonic(), done, threading.Event()

        def advance() -> None:
            nonlocal done
            done += 1

        def report() -> None:
            """Runs in a thread, as one step may take minutes."""
            wait = _FIRST_LINE_SECONDS
            while not finished.wait(wait):
                seconds = time.monotonic() - started
                here = done - before  # what an earlier run did says nothing about the speed of this one
                left = f", about {_duration(seconds / here * (total - done))} left" if here else ""
                self._print(f"{name}: {done} of {total} after {_duration(seconds)}{left}")
                wait = min(3 * wait, _LINES_EVERY_SECONDS)

        reporter = threading.Thread(target=report, name="sonic-progress", daemon=True)
        reporter.start()
        try:
            yield advance
        finally:
            finished.set()
            reporter.join()
        counted = f"{total - before} of {total}" if before else f"{total}"
        self._print(f"{name}: {counted} in {time.monotonic() - started:.1f} s")

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


def default_progress() -> Progress:
    """Bars if standard error is a terminal, otherwise nothing."""
    progress = ConsoleProgress()
    return progress if progress.console.is_terminal else NoProgress()


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
