"""``sonic verify``: check that a bundle computes on this machine what PyTorch computes."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sonic.bundle.presets import SPEED_NAMES, SpeedName
from sonic.bundle.trust import TrustOptions
from sonic.cli.errors import user_errors
from sonic.cli.options import PATH, load_for_command, threads_option, trust_options
from sonic.cli.tables import console
from sonic.options import RunOptions
from sonic.progress import ConsoleProgress
from sonic.storage.files import write_json
from sonic.verification.verify import PresetVerification, Verification, verify_bundle


@click.command()
@click.argument("bundle")
@click.option("--json", "report_path", type=PATH, help="Write the numbers to this file.")
@click.option(
    "--speed",
    type=click.Choice(SPEED_NAMES),
    help="Also compare this preset of the bundle with the published sampler, in the same clip.",
)
@threads_option
@trust_options
def verify(
    bundle: str, report_path: Path | None, speed: SpeedName | None, run: RunOptions, trust: TrustOptions
) -> None:
    """Compare BUNDLE, as this machine runs it, with PyTorch; exits with 1 if a tolerance is exceeded.

    The bundle contains inputs and a short clip with PyTorch's results for them; PyTorch is not needed. The
    clip is always denoised as published ('exact'), whatever the bundle's default speed preset. With --key or
    --certificate, BUNDLE also has to be signed by its owner.
    """
    with user_errors():
        found = verify_bundle(load_for_command(bundle, run, trust), ConsoleProgress(), speed)
        console().print(verification_table(found))
        if report_path is not None:
            write_json(report_path, found.to_json())
    if not found.passed:
        sys.exit(1)


def verification_table(verification: Verification) -> Table:
    """The comparison for a terminal of 80 columns."""
    title = f"{verification.bundle} on {verification.machine} against PyTorch"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("compared", "max abs", "relative L2", "when made", "tolerance", ""):
        table.add_column(column, justify="left" if column == "compared" else "right", no_wrap=True)
    for row in verification.submodels:
        found = (f"{row.max_abs:.2e}", f"{row.relative_l2:.2e}") if row.finite else ("", "not finite")
        verdict = "ok" if row.passed else "FAILED"
        table.add_row(row.name, *found, f"{row.when_made:.2e}", f"{row.tolerance:.2g}", verdict)
    clip = verification.clip
    table.add_section()
    table.add_row(
        "clip",
        "PSNR",
        "none" if clip.psnr_db is None else f"{clip.psnr_db:.1f} dB",
        f"{clip.when_made:.1f} dB",
        f">= {clip.minimum_psnr_db:.1f} dB",
        "ok" if clip.passed else "FAILED",
    )
    table.caption = (
        f"the clip has {verification.frames} frames of {verification.width} x {verification.height}, "
        f"{verification.steps} steps" + (f"; {clip.problem}" if clip.problem else "")
    )
    if verification.preset is not None:
        _add_preset(table, verification.preset)
    return table


def _add_preset(table: Table, preset: PresetVerification) -> None:
    """Add how close a speed preset comes; without a bound in the bundle there is no verdict."""
    ok = "" if preset.minimum_psnr_db is None else "ok"
    table.add_section()
    table.add_row(
        preset.speed,
        "PSNR",
        "none" if preset.psnr_db is None else f"{preset.psnr_db:.1f} dB",
        "" if preset.worst_psnr_db is None else f"worst {preset.worst_psnr_db:.1f}",
        "" if preset.minimum_psnr_db is None else f">= {preset.minimum_psnr_db:.1f} dB",
        ok if preset.passed else "FAILED",
    )
    table.caption = (
        f"{table.caption}\n'{preset.speed}' ({preset.evaluations} evaluations a window) is compared with "
        f"'exact' ({preset.published_evaluations})" + (f"; {preset.problem}" if preset.problem else "")
    )
