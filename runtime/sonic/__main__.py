"""``python -m sonic``."""

from sonic.cli.main import main

main()
