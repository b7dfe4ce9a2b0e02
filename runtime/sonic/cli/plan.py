"""``sonic plan``: what a clip would compute, step by step, without computing it."""

from __future__ import annotations

from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sonic.bundle.trust import TrustOptions
from sonic.cli.errors import user_errors
from sonic.cli.options import PATH, manifest_for_command, run_options, size_options, trust_options
from sonic.cli.tables import console
from sonic.diffusion.guidance import BRANCH_NAMES
from sonic.diffusion.plan import DenoisingStep
from sonic.execution import choose_execution
from sonic.options import GenerationOptions, RunOptions
from sonic.plan import ClipPlan, plan_square_clip
from sonic.storage.files import write_json


@click.command()
@click.argument("bundle")
@size_options
@click.option("--json", "plan_path", type=PATH, help="Write the whole plan to this file.")
@run_options
@trust_options
def plan(
    bundle: str, options: GenerationOptions, plan_path: Path | None, run: RunOptions, trust: TrustOptions
) -> None:
    """Show how a square clip would be computed: its denoising steps, every submodel's calls, and how many
    of them at once.
    """
    with user_errors():
        manifest = manifest_for_command(bundle, trust)
        planned = plan_square_clip(manifest, options)
        printer = console()
        printer.print(steps_table(planned, manifest.name))
        printer.print(calls_table(planned))
        printer.print(f"execution here, now: {choose_execution(manifest, [planned], run)}")
        if plan_path is not None:
            write_json(plan_path, planned.to_json())


def steps_table(planned: ClipPlan, name: str) -> Table:
    """The denoising steps."""
    size = planned.size
    title = (
        f"{name}: {size.seconds:g} s of {size.width} x {size.height} pixels, "
        f"{planned.generated_frames} frames denoised in {len(planned.denoising.steps)} steps, "
        f"{planned.denoising.evaluations_per_window} evaluations a window"
    )
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    columns = (
        "step",
        "sigma",
        "to",
        "windows",
        "first frames",
        "branches",
        "image",
        "audio",
        "reused",
        "calls",
    )
    for column in columns:
        left = column in ("first frames", "branches", "reused")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for number, step in enumerate(planned.denoising.steps, 1):
        starts = [str(int(step.windows[index][0])) for index in range(min(3, len(step.windows)))]
        branches = ", ".join(BRANCH_NAMES[branch] for branch in step.branches)
        table.add_row(
            str(number),
            f"{step.sigma:.4g}",
            f"{step.next_sigma:.4g}",
            str(len(step.windows)),
            ", ".join(starts) + (", ..." if len(step.windows) > len(starts) else ""),
            branches,
            f"{step.image_scale:g}",
            f"{step.audio_scale:g}",
            _reused(step),
            str(step.call_count),
        )
    return table


def _reused(step: DenoisingStep) -> str:
    """The multiples of earlier differences that a step uses."""
    # A scale of 1 needs no difference.
    image = 0 not in step.branches and step.image_scale != 1 and step.image_reuse
    audio = 1 not in step.branches and step.audio_scale != 1 and step.audio_reuse
    parts = [f"{name} {multiple:.2f}" for name, multiple in (("image", image), ("audio", audio)) if multiple]
    return ", ".join(parts)


def calls_table(planned: ClipPlan) -> Table:
    """The calls of every submodel."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "submodel", "sizes", "calls", "at the same time"):
        right = column in ("calls", "at the same time")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for stage in planned.stages:
        for calls in stage.calls:
            sizes = ", ".join(f"{axis} {size}" for axis, size in calls.sizes.items())
            table.add_row(stage.name, calls.submodel, sizes, str(calls.count), f"up to {calls.independent}")
    return table
