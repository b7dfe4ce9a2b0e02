"""Starts the command ``sonic-convert``; see :mod:`sonic.cli.entry`."""

from __future__ import annotations

from sonic.cli.entry import run


def main() -> None:
    """The command ``sonic-convert``."""
    run("sonic_convert.cli.main")
