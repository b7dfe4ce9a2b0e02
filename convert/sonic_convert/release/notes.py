"""The notes of a release: the changes of its version, and its bundles."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sonic.bundle.manifest import Manifest
from sonic.bundle.presets import SPEED_NAMES
from sonic.diffusion.steps import evaluations_per_window
from sonic.errors import InputError
from sonic.options import GenerationOptions
from sonic.plan import denoising_steps
from sonic_convert.release.bundles import Packed


def release_notes(version: str, changelog: str, bundles: Sequence[Packed]) -> str:
    """The notes, in Markdown.

    Args:
        version: of the release.
        changelog: the text of ``CHANGELOG.md``.
        bundles: of the release.

    Raises:
        InputError: the changelog has no section of this version, and none of unreleased changes.
    """
    rows = [
        "| bundle | machine | precision | size | PSNR to PyTorch | relative L2 | evaluations | sha256 |",
        "|---|---|---|---|---|---|---|---|",
        *map(_row, bundles),
    ]
    licenses = sorted({packed.manifest.license for packed in bundles})
    return "\n".join(
        [
            f"# sonic-arm {version}", "", _section(version, changelog), "", "## Bundles", "", *rows, "",
            "PSNR: of the golden clip's frames. Relative L2: the worst submodel's, on the golden vectors. "
            f"Evaluations of the UNet for a window of frames, by preset ({', '.join(SPEED_NAMES)}).", "",
            "Licence of the weights:", "", *(f"- {text}" for text in licenses), "",
            "`sha256sum --check SHA256SUMS` compares the files; "
            "`sonic bundle fetch-from FILE` compares one and installs it.", "",
        ]
    )  # fmt: skip


def _section(version: str, changelog: str) -> str:
    sections = re.split(r"^## \[(.+?)\].*$", changelog, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    # What is not released yet is in a build before its version is raised.
    parts = [found[name].strip() for name in ("Unreleased", version) if found.get(name, "").strip()]
    if parts:
        return "\n\n".join(parts).replace("### ", "## ")
    raise InputError(f"CHANGELOG.md has no section [{version}], nor one of unreleased changes; write it")


def _row(packed: Packed) -> str:
    manifest = packed.manifest
    size = packed.archive.stat().st_size
    golden = manifest.verification
    psnr = "-" if golden is None else f"{golden.clip.psnr_db:.1f} dB"
    worst = "-" if golden is None else f"{max(one.relative_l2 for one in golden.submodels.values()):.1e}"
    cells = (
        packed.archive.name, packed.machine, packed.precision, f"{size / 1e6:,.1f} MB", psnr, worst,
        _presets(manifest), f"`{packed.sha256}`",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _presets(manifest: Manifest) -> str:
    return ", ".join(
        str(evaluations_per_window(denoising_steps(manifest, GenerationOptions(speed=name))))
        for name in SPEED_NAMES
    )
