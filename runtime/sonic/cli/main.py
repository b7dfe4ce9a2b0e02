"""The ``sonic`` command: thin wrappers around :mod:`sonic`."""

from __future__ import annotations

import click

import sonic
from sonic.cli.batch import batch
from sonic.cli.bundle import bundle
from sonic.cli.estimate import estimate
from sonic.cli.generate import generate
from sonic.cli.info import info
from sonic.cli.plan import plan
from sonic.cli.sign import sign
from sonic.cli.verify import verify
from sonic.cli.watermark import watermark


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sonic.__version__, package_name="sonic-runtime")
def main() -> None:
    """Talking-head video from one portrait and one recording, on a CPU."""


for command in (generate, batch, plan, estimate, verify, sign, info, bundle, watermark):
    main.add_command(command)

if __name__ == "__main__":
    main()
