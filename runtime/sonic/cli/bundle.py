"""``sonic bundle``: bundles as single files."""

from __future__ import annotations

from pathlib import Path

import click

from sonic.archives.install import install
from sonic.archives.pack import pack as pack_bundle
from sonic.archives.unpack import unpack as unpack_bundle
from sonic.bundle.store import find_bundle
from sonic.cli.errors import user_errors
from sonic.cli.options import PATH
from sonic.progress import ConsoleProgress

_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")


@click.group()
def bundle() -> None:
    """Pack bundles into single files, unpack and install them."""


@bundle.command()
@click.argument("bundle")
@click.argument("archive", type=PATH)
def pack(bundle: str, archive: Path) -> None:
    """Pack BUNDLE, a name or path, into ARCHIVE (.tar.zst); the same bundle gives the same bytes."""
    with user_errors():
        pack_bundle(find_bundle(bundle), archive, ConsoleProgress())
        click.echo(f"{archive}: {archive.stat().st_size / 1e6:,.1f} MB")


@bundle.command()
@click.argument("archive", type=PATH)
@click.argument("folder", type=PATH)
@_OVERWRITE
def unpack(archive: Path, folder: Path, overwrite: bool) -> None:
    """Unpack ARCHIVE to FOLDER, and compare every file with the manifest."""
    with user_errors():
        manifest = unpack_bundle(archive, folder, overwrite, ConsoleProgress())
        click.echo(f"{folder}: the bundle {manifest.name}")


@bundle.command()
@click.argument("archive", type=PATH)
@click.option("--sums", type=PATH, help="The release's SHA256SUMS [beside ARCHIVE].")
@click.option("--name", help="Name of the installed bundle [its own].")
@_OVERWRITE
def fetch_from(archive: Path, sums: Path | None, name: str | None, overwrite: bool) -> None:
    """Install the bundle in ARCHIVE, a file of a release, for this user, and compare its checksum first.

    It goes to $SONIC_HOME, or the user's folder for data. Nothing is downloaded.
    """
    with user_errors():
        folder = install(archive, sums, name, overwrite, ConsoleProgress())
        click.echo(f"{folder}: use it with --bundle {folder.name}")
        found = find_bundle(folder.name)
        if found.resolve() != folder.resolve():
            click.echo(f"note: from this folder, --bundle {folder.name} is {found}", err=True)
