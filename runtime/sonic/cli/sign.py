"""``sonic sign``: sign a bundle with a private key."""

from __future__ import annotations

from pathlib import Path

import click

from sonic.bundle.signing import sign_bundle
from sonic.bundle.store import find_bundle, open_bundle
from sonic.cli.errors import user_errors
from sonic.cli.options import PATH


@click.command()
@click.argument("bundle")
@click.option("--key", required=True, type=PATH, help="Private key (PEM, elliptic curve, no password).")
@click.option("--certificate", type=PATH, help="Certificate (PEM) of the key, to be checked with a root's.")
@click.option(
    "--chain",
    multiple=True,
    type=PATH,
    help="Certificate (PEM) between --certificate and its root, or the root; may be repeated.",
)
def sign(bundle: str, key: Path, certificate: Path | None, chain: tuple[Path, ...]) -> None:
    """Sign every file of BUNDLE, whose digests are checked first; the signature is its file model.sig.

    'sonic verify BUNDLE --key PUBLIC.pem', or --certificate ROOT.pem, checks it. Nothing is sent anywhere.
    """
    with user_errors():
        opened = open_bundle(find_bundle(bundle))
        click.echo(f"{sign_bundle(opened, key, certificate, chain)}: signed {len(opened.digests)} files")
