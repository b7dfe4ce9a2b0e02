"""Makes a release: packages, bundles, checksums, bill of materials, notes and licences, in one folder.

Two releases of one commit have the same bytes, made with the same versions of the installed packages.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from sonic.archives.install import SUMS_NAME
from sonic.bundle.store import sha256_of
from sonic.errors import OutputError
from sonic.progress import Progress
from sonic.storage.claims import claimed
from sonic.storage.files import replacing_folder
from sonic_convert.export import measured
from sonic_convert.release.bundles import BundleOptions, build_bundles
from sonic_convert.release.licenses import third_party_licenses
from sonic_convert.release.notes import release_notes
from sonic_convert.release.packages import build_packages, check_tools
from sonic_convert.release.requirements import built
from sonic_convert.release.sbom import bill_of_materials
from sonic_convert.release.source import export

MEASURED_NAME = "measured-memory.json"


def make_release(
    root: Path,
    target: Path,
    work: Path,
    options: BundleOptions,
    progress: Progress,
    measured_path: Path | None = None,
) -> list[Path]:
    """Make a release of the commit that is checked out.

    Args:
        root: a clone of the repository, without changes.
        target: the folder to write; an earlier release in it is replaced when all is done.
        work: intermediate results, from which an interrupted or repeated call resumes.
        options: which bundles.
        progress: shows the stages.
        measured_path: ``measured-memory.json`` of a release to reproduce.

    Returns:
        The files, sorted.

    Raises:
        InputError: the repository, the checkpoint or a file cannot be used.
        OutputError: a file cannot be written, or something else is at `target`.
    """
    check_tools()
    if target.exists() and any(target.iterdir()) and not (target / SUMS_NAME).is_file():
        raise OutputError(f"{target} exists and is no release; choose another name, so that nothing is lost")
    stages = work / options.name / "stages"
    with (
        claimed(target, "the release"),
        claimed(work, "the work folder"),
        measured.quoting(measured_path, stages),
    ):
        source = export(root, work / "source")
        bundles = build_bundles(options, work / options.name, source.seconds, progress)
        with replacing_folder(target) as partial, progress.stage("packages, notes", 1) as advance:
            packages = build_packages(source, partial)
            for packed in bundles:
                _place(packed.archive, partial)
            changelog = (source.folder / "CHANGELOG.md").read_text(encoding="utf-8")
            _write(partial / "RELEASE_NOTES.md", release_notes(source.version, changelog, bundles))
            _write(partial / "THIRD_PARTY_LICENSES.txt", third_party_licenses(built(packages)))
            bill = bill_of_materials(source.version, source.seconds, packages, bundles)
            _write(partial / "sonic-arm.cdx.json", bill)
            memory = measured.collect(stages)
            _write(partial / MEASURED_NAME, json.dumps(memory, indent=1) + "\n")
            files = sorted(partial.iterdir())
            sums = "".join(f"{sha256_of(path)}  {path.name}\n" for path in files)
            _write(partial / SUMS_NAME, sums)
            advance()
    return sorted(target.iterdir())


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _place(file: Path, folder: Path) -> None:
    """A second name for a file, which may have gigabytes; a copy where that is not possible."""
    try:
        os.link(file, folder / file.name)
    except OSError:
        shutil.copyfile(file, folder / file.name)
