"""The console for tables: as wide as the terminal, or as wide as tables need in files and pipes."""

from __future__ import annotations

from rich.console import Console

#: Columns in a file or pipe, whose width is unknown; rich would cut tables to 80.
COLUMNS_WITHOUT_TERMINAL = 200


def console(*, stderr: bool = False) -> Console:
    """A console that prints text verbatim: brackets in a path are not markup."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = COLUMNS_WITHOUT_TERMINAL
    return made
