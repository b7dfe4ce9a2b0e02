"""Errors at the command line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

import sonic
from sonic.errors import SonicError


@contextmanager
def user_errors() -> Iterator[None]:
    """Print an error that the user can solve as one sentence (exit code 2), and warnings as notes.

    An interrupt ends with exit code 130, as shells expect.
    """

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"note: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", sonic.SonicWarning)
        warnings.showwarning = show
        try:
            yield
        except SonicError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        except OSError as error:  # a disk that is full, a folder that may not be read
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"error: {where}{error.strerror or error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was written", err=True)
            sys.exit(130)
