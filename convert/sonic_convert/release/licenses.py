"""The licence texts of everything that the runtime's wheel brings along, as one text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import Distribution

from sonic_convert.release.requirements import closure, first, license_of

_TEXT = re.compile(r"(licen[cs]e|copying|notice|authors|thirdpartynotices)([._-].*)?", re.IGNORECASE)
_LIBRARY = re.compile(r"\.so(\.|$)|\.dylib$|\.dll$")
_RULE = "=" * 110


def third_party_licenses(ours: Mapping[str, Distribution]) -> str:
    """Every package's name, version, licence, the libraries inside, and the texts that its wheel holds.

    `ours` is the metadata of the built wheels, by name.
    """
    parts = [
        "Licences of the packages that sonic-runtime installs, as they were on the machine of the build.\n"
        "Libraries inside a package are part of its wheel; their texts are given where the wheel has them."
    ]
    for name, package in closure("sonic-runtime", ours).items():
        parts.append(_part(name, package))
    return f"\n\n{_RULE}\n".join(parts) + "\n"


def _part(name: str, package: Distribution) -> str:
    lines = [f"{name} {package.version}: {license_of(package)}"]
    if address := first(package, "Home-page") or _address(package):
        lines.append(address)
    files = sorted(package.files or (), key=str)
    libraries = sorted(
        {file.name for file in files if _LIBRARY.search(file.name) and ".libs/" in f"{file.parent}/"}
    )
    if libraries:
        lines.append(f"Libraries inside: {', '.join(libraries)}")
    if name == "av":
        lines.append(_ffmpeg())
    texts: dict[str, str] = {}
    for file in files:
        if _TEXT.fullmatch(file.name) and not file.name.endswith((".py", ".pyc")):
            text = file.read_text(encoding="utf-8").strip()
            texts.setdefault(text, f"--- {file} ---\n\n{text}")
    if not texts:
        lines.append("The wheel holds no text of its licence.")
    return "\n".join(lines) + "".join(f"\n\n{text}" for text in texts.values())


def _address(package: Distribution) -> str | None:
    urls = [value.partition(", ") for value in package.metadata.get_all("Project-URL") or ()]
    known = {label.lower(): url for label, _, url in urls}
    wanted = ("homepage", "repository", "source", "source code", "github")
    return next((known[label] for label in wanted if label in known), None)


def _ffmpeg() -> str:
    """What FFmpeg, which is inside PyAV, says of itself; its texts are not in the wheel."""
    import av._core

    meta = getattr(av._core, "library_meta", {})
    codec = meta.get("libavcodec", {})
    version = ".".join(map(str, codec.get("version", ()))) or "of an unknown version"
    license, options = codec.get("license", "LGPL or GPL"), codec.get("configuration", "unknown options")
    return (
        f"FFmpeg (libavcodec {version}) is inside, under the {license}; its texts: "
        f"https://ffmpeg.org/legal.html; configured with {options}"
    )
