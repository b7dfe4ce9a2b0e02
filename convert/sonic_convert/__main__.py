"""``python -m sonic_convert``."""

from sonic_convert.cli.main import main

main()
