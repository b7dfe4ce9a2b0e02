"""``python -m sonic``."""

from sonic.cli import main

main()
