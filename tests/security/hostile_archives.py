"""Archives of bundles that an attacker could hand in."""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from security.hostile import HostileInput

from sonic.archives.pack import pack
from sonic.bundle.manifest_file import manifest_text
from sonic.bundle.store import PACKAGED_BUNDLES

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, ZstdFile
else:
    from backports.zstd import CompressionParameter, ZstdFile

BUNDLE = PACKAGED_BUNDLES / "sonic-tiny"
NAME = BUNDLE.name
FILTERS = "mel_filters.npy"
Fill = Callable[[tarfile.TarFile], None]


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    """Add a member of any kind, with any fields of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


def manifest(change: Callable[[dict[str, Any]], object] = lambda values: None) -> bytes:
    """sonic-tiny's manifest, changed."""
    values = json.loads((BUNDLE / "manifest.json").read_text())
    change(values)
    return manifest_text(values).encode()


def write(path: Path, fill: Fill, text: bytes | None = None, **options: int) -> None:
    """Write an archive with a manifest and what `fill` adds."""
    parameters = {CompressionParameter[name]: value for name, value in options.items()}
    with (
        ZstdFile(path, "wb", options=parameters) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        add(tar, f"{NAME}/manifest.json", manifest() if text is None else text)
        fill(tar)
        add(tar, f"{NAME}/padding", random.Random(0).randbytes(100_000))  # it could hold the bundle


def archive(fill: Fill, text: bytes | None = None, **options: int) -> Callable[[Path], Sequence[str]]:
    """The command that unpacks such an archive."""

    def command(folder: Path) -> Sequence[str]:
        path = folder / "archive.tar.zst"
        write(path, fill, text, **options)
        return "sonic", "bundle", "unpack", str(path), str(folder / "out")

    return command


def listed(**fields: object) -> Callable[[dict[str, Any]], object]:
    """Change the manifest's entry of the mel filters."""
    return lambda values: values["assets"]["mel_filters"].update(fields)


def listed_too(**fields: object) -> Callable[[dict[str, Any]], object]:
    """Add an entry like that of the mel filters."""
    return lambda values: values["assets"].update(more=values["assets"]["mel_filters"] | fields)


def nothing(tar: tarfile.TarFile) -> None:
    """Add nothing."""


def twice(tar: tarfile.TarFile) -> None:
    """Add a file of the bundle two times."""
    for _ in range(2):
        add(tar, f"{NAME}/{FILTERS}", (BUNDLE / FILTERS).read_bytes())


def through_a_link(tar: tarfile.TarFile) -> None:
    """Add a link, and a file behind it."""
    add(tar, f"{NAME}/unet", type=tarfile.SYMTYPE, linkname="/tmp")
    add(tar, f"{NAME}/unet/model.onnx", b"x")


def other(content: bytes) -> Callable[[Path], Sequence[str]]:
    """The command that unpacks a file of this content."""

    def command(folder: Path) -> Sequence[str]:
        path = folder / "archive.tar.zst"
        path.write_bytes(content)
        return "sonic", "bundle", "unpack", str(path), str(folder / "out")

    return command


def truncated(folder: Path) -> Sequence[str]:
    """An archive whose second half is missing."""
    path = folder / "archive.tar.zst"
    pack(BUNDLE, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "sonic", "bundle", "unpack", str(path), str(folder / "out")


def other_checksum(folder: Path) -> Sequence[str]:
    """An archive that was exchanged after its release."""
    command = archive(nothing)(folder)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  archive.tar.zst\n")
    return "sonic", "bundle", "fetch-from", command[3]


def row(name: str, command: Callable[[Path], Sequence[str]], sentence: str) -> HostileInput:
    """A row of the table."""
    return HostileInput(name, "bundle", command, sentence)


ROWS: list[HostileInput] = [
    row(
        "an archive with a file outside its folder, ../../escape",
        archive(lambda tar: add(tar, f"{NAME}/../../escape", b"x")),
        "holds 'sonic-tiny/../../escape', which is not in its manifest",
    ),
    row(
        "an archive with a file of an absolute name, /tmp/escape",
        archive(lambda tar: add(tar, "/tmp/escape", b"x")),
        "holds '/tmp/escape', which is not in its manifest",
    ),
    row(
        "an archive whose manifest lists a file outside the folder",
        archive(nothing, manifest(listed(path="../escape"))),
        "'../escape' points outside the folder",
    ),
    row(
        "an archive with a link, and a file behind it", archive(through_a_link), "'sonic-tiny/unet' is a link"
    ),
    row(
        "an archive with a hard link to /etc/passwd",
        archive(lambda tar: add(tar, f"{NAME}/{FILTERS}", type=tarfile.LNKTYPE, linkname="/etc/passwd")),
        "is a link, not a plain file",
    ),
    row(
        "an archive with a device",
        archive(lambda tar: add(tar, f"{NAME}/{FILTERS}", type=tarfile.BLKTYPE, devmajor=8)),
        "is a device, not a plain file",
    ),
    row(
        "an archive with a sparse file",
        archive(lambda tar: add(tar, f"{NAME}/{FILTERS}", type=tarfile.GNUTYPE_SPARSE)),
        "is a sparse file, not a plain file",
    ),
    row(
        "an archive with an extended header that renames a file",
        archive(
            lambda tar: add(
                tar, f"{NAME}/{FILTERS}", pax_headers={"path": "../escape", "GNU.sparse.name": "x"}
            )
        ),
        "is an extension of the format, not a plain file",
    ),
    row("an archive with a file twice", archive(twice), "holds 'sonic-tiny/mel_filters.npy', twice"),
    row(
        "an archive whose manifest lists names that differ in case only",
        archive(nothing, manifest(listed_too(path="Mel_Filters.npy"))),
        "which some systems take for one name",
    ),
    row(
        "an archive of 100 kB whose manifest lists 100 GB",
        archive(nothing, manifest(listed(bytes=10**11))),
        r"\d+ bytes cannot hold the 100\d+ that its manifest lists",
    ),
    row(
        "an archive that begins with a manifest of 5 MB of zeros",
        archive(nothing, bytes(5_000_000)),
        "its manifest has 5000000 bytes, more than any bundle's",
    ),
    row(
        "an archive whose manifest is 100,000 nested lists",
        archive(nothing, b"[" * 100_000),
        "cannot be read",
    ),
    row(
        "an archive whose decompression asks for 1 GB of memory",
        archive(nothing, window_log=30),
        "is not an archive of a bundle, or damaged",
    ),
    row("an archive that is cut in the middle", truncated, "is not an archive of a bundle, or damaged"),
    row(
        "an archive that is a text",
        other(b"#!/bin/sh\nrm -rf /\n"),
        "is not an archive of a bundle, or damaged",
    ),
    row("an archive exchanged after its release", other_checksum, "has another checksum than"),
]
