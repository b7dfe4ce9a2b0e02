"""What a package brings along: its requirements, theirs, and so on, as they are installed here."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sonic.errors import InputError


def built(files: Iterable[Path]) -> dict[str, Distribution]:
    """The metadata of wheels by canonical name; what is installed may be of an earlier version of them."""
    found: dict[str, Distribution] = {}
    for wheel in files:
        if wheel.suffix == ".whl" and zipfile.is_zipfile(wheel):
            inside = zipfile.Path(wheel).iterdir()
            # Documented for paths of a file system only, but the interpreter reads packages in archives so.
            metadata = next(path for path in inside if path.name.endswith(".dist-info"))
            package = PathDistribution(metadata)  # type: ignore[arg-type]
            found[canonicalize_name(package.name)] = package
    return found


def closure(name: str, ours: Mapping[str, Distribution]) -> dict[str, Distribution]:
    """The distributions that a package needs, without its extras, by canonical name, sorted; not the package.

    Args:
        name: the package.
        ours: those that take precedence over what is installed, by canonical name.

    Raises:
        InputError: one is not installed.
    """
    found: dict[str, Distribution] = {}
    wanted: list[tuple[str, frozenset[str]]] = [(canonicalize_name(name), frozenset())]
    seen = set()
    while wanted:
        package, extras = wanted.pop()
        if (package, extras) in seen:
            continue
        seen.add((package, extras))
        try:
            found[package] = ours.get(package) or distribution(package)
        except PackageNotFoundError:
            raise InputError(f"the package {package} is not installed; run 'make setup'") from None
        wanted += needs(found[package], extras)
    found.pop(canonicalize_name(name))
    return dict(sorted(found.items()))


def needs(package: Distribution, extras: frozenset[str] = frozenset()) -> list[tuple[str, frozenset[str]]]:
    """A distribution's direct requirements on this machine: canonical names, and the extras of each."""
    direct: list[tuple[str, frozenset[str]]] = []
    for text in package.requires or ():
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in ("", *sorted(extras))]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            direct.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return direct


def first(package: Distribution, entry: str) -> str:
    """The first value of an entry of a distribution's metadata, or ""."""
    return next(iter(package.metadata.get_all(entry) or ()), "").strip()


def license_of(package: Distribution) -> str:
    """A distribution's licence in a few words: an SPDX expression where it has one."""
    text = first(package, "License-Expression")
    if text:
        return text
    trove = [
        value.split(" :: ")[-1]
        for value in package.metadata.get_all("Classifier") or ()
        if value.startswith("License :: ") and value != "License :: OSI Approved"
    ]
    text = first(package, "License")
    if trove and (not text or len(text) > 60 or "\n" in text):
        return ", ".join(trove)
    return text.splitlines()[0][:60] if text else "not stated"
