"""``python3 generate.py --image=P --audio=A --duration=60 --resolution=1024 --steps=25 --output=V.mp4``"""

from typing import Any

import click

from sonic.cli.generate import run_generate
from sonic.cli.options import generation_options


@click.command()
@click.option("--bundle", default="sonic-base", show_default=True, help="A bundle's name or path.")
@generation_options
def main(bundle: str, **options: Any) -> None:
    """Generate a talking-head video (the same as 'sonic generate')."""
    run_generate(bundle, **options)


if __name__ == "__main__":
    main()
