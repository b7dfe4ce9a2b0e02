"""The bill of materials of a release, CycloneDX 1.6: packages, what they bring along, and the models."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import Distribution, distribution
from pathlib import Path

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.utils import canonicalize_name

from sonic.bundle.store import sha256_of
from sonic_convert.release.bundles import Packed
from sonic_convert.release.requirements import built, closure, license_of, needs

_PACKAGES = ("sonic-runtime", "sonic-convert")


def bill_of_materials(version: str, seconds: int, packages: Sequence[Path], bundles: Sequence[Packed]) -> str:
    """The bill as JSON; the same for the same release on the same installed packages.

    Args:
        version: of the release.
        seconds: its time, since 1970.
        packages: wheels and source archives.
        bundles: the archives.
    """
    wheels = built(packages)
    bom = Bom()
    bom.metadata.timestamp = datetime.fromtimestamp(seconds, UTC)
    root = Component(
        name="sonic-arm", version=version, type=ComponentType.APPLICATION, bom_ref="sonic-arm",
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
    )  # fmt: skip
    bom.metadata.component = root
    ours = {name: _package(name, version, packages) for name in _PACKAGES}
    third = {}
    for name in _PACKAGES:
        third.update({key: one for key, one in closure(name, wheels).items() if key not in _PACKAGES})
    libraries = {name: _library(name, one) for name, one in sorted(third.items())}
    models = [_model(packed, version) for packed in bundles]
    for component in (*ours.values(), *libraries.values(), *models):
        bom.components.add(component)
    known = {**ours, **libraries}
    for name in _PACKAGES:
        direct = {package for package, _ in needs(wheels.get(name) or distribution(name))}
        bom.register_dependency(ours[name], [known[one] for one in sorted(direct) if one in known])
    for name, one in third.items():
        direct = {package for package, _ in needs(one)}
        bom.register_dependency(libraries[name], [known[key] for key in sorted(direct) if key in known])
    bom.register_dependency(root, [*ours.values(), *models])
    digests = "\n".join(sorted(sha256_of(path) for path in (*packages, *(one.archive for one in bundles))))
    versions = "\n".join(f"{name} {one.version}" for name, one in sorted(third.items()))
    bom.serial_number = uuid.uuid5(
        uuid.NAMESPACE_URL, f"sonic-arm {version} {seconds}\n{digests}\n{versions}"
    )
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _library(name: str, package: Distribution) -> Component:
    return Component(
        name=name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"pkg:pypi/{name}@{package.version}",
        purl=PackageURL("pypi", name=name, version=package.version),
        licenses=[_license(license_of(package))],
    )


def _package(name: str, version: str, files: Iterable[Path]) -> Component:
    """One of ours; its files are parts of it, with their hashes."""
    stem = canonicalize_name(name).replace("-", "_") + "-"
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"pkg:pypi/{name}@{version}",
        purl=PackageURL("pypi", name=name, version=version),
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
        components=[
            _file(path.name, sha256_of(path), path.name) for path in files if path.name.startswith(stem)
        ],
    )


def _model(packed: Packed, version: str) -> Component:
    manifest, name = packed.manifest, packed.archive.name
    properties = {
        "sonic:bundle": manifest.name,
        "sonic:engine": manifest.engine,
        "sonic:machine": packed.machine,
        "sonic:precision": packed.precision,
    }
    return Component(
        name=name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=name,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=packed.sha256)],
        licenses=[_license(manifest.license)],
        properties=[Property(name=key, value=value) for key, value in properties.items()],
        components=[
            Component(
                name=submodel.name,
                version=version,
                type=ComponentType.MACHINE_LEARNING_MODEL,
                bom_ref=f"{name}/{submodel.name}",
                properties=[Property(name="sonic:precision", value=submodel.precision)],
                components=[_file(file.path, file.sha256, f"{name}/{file.path}") for file in submodel.files],
            )
            for submodel in manifest.submodels.values()
        ],
    )


def _file(name: str, sha256: str, reference: str) -> Component:
    return Component(
        name=name,
        type=ComponentType.FILE,
        bom_ref=f"file:{reference}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
    )


def _license(text: str) -> License:
    """An SPDX expression or identifier where it is one, otherwise a name."""
    try:
        return LicenseFactory().make_from_string(text)
    except ValueError:
        return DisjunctiveLicense(name=text)
