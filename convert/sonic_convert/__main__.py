"""``python -m sonic_convert``."""

from sonic_convert.cli import main

main()
