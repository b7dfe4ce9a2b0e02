"""``python -m sonic_convert``."""

from sonic_convert.cli.entry import main

main()
