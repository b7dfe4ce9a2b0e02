"""Where tables are printed: as wide as the terminal, or as wide as they need in files and pipes."""

from __future__ import annotations

from rich.console import Console

#: Columns in a file or pipe, where nothing says how many there are; rich would cut tables to 80.
COLUMNS_WITHOUT_TERMINAL = 200


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: brackets in a path are no markup."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = COLUMNS_WITHOUT_TERMINAL
    return made
