"""Progress of long work: which stage, how far, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

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


class Progress(Protocol):
    """Follows the stages of one job."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """Enter a stage of `total` steps; call the result after each step."""


class NoProgress:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """Enter a stage of `total` steps."""
        yield lambda: None


class ConsoleProgress:
    """A bar for each stage on a terminal, or one line for each finished stage elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """Enter a stage of `total` steps."""
        started = time.monotonic()
        if self.console.is_terminal:
            with RichBars(
                TextColumn("{task.description:<24}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            ) as bars:
                task = bars.add_task(name, total=total)
                yield lambda: bars.advance(task)
        else:
            yield lambda: None
            self.console.print(f"{name}: {total} in {time.monotonic() - started:.1f} s", highlight=False)


def default_progress() -> Progress:
    """Bars where a person is looking (standard error is a terminal), else nothing."""
    console = Console(stderr=True)
    return ConsoleProgress(console) if console.is_terminal else NoProgress()
