"""``python -m sonic``."""

from sonic.cli.entry import main

main()
