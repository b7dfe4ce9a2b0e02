"""``sonic estimate``: tables of what a clip would cost."""

from __future__ import annotations

from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sonic.bundle.store import find_bundle, open_bundle
from sonic.cli.errors import user_errors
from sonic.cli.options import PATH, size_options, threads_option
from sonic.cli.tables import console
from sonic.costs.calibration import calibrate
from sonic.costs.estimate import Estimate, estimate_clip
from sonic.costs.machines import MACHINES, Machine, find_machine
from sonic.engines.registry import make_engine
from sonic.errors import InputError, warn
from sonic.execution import most_threads
from sonic.host import stay_on_a_node
from sonic.options import GenerationOptions, RunOptions
from sonic.plan import ClipPlan, plan_square_clip
from sonic.storage.files import write_json


@click.command()
@click.argument("bundle")
@size_options
@click.option(
    "--machine",
    "machines",
    multiple=True,
    help="A server's name, or a JSON file that describes one; repeat it to compare [all known servers].",
)
@click.option("--calibrate", "calibrated", is_flag=True, help="Measure this machine, for about 10 seconds.")
@click.option("--save", type=PATH, help="With --calibrate: write what was measured to this JSON file.")
@threads_option
def estimate(
    bundle: str,
    options: GenerationOptions,
    machines: tuple[str, ...],
    calibrated: bool,
    save: Path | None,
    run: RunOptions,
) -> None:
    """Estimate what a clip of a square portrait costs: operations, time, memory, disk and energy."""
    with user_errors():
        run_estimate(bundle, options, machines, calibrated, save, run)


def run_estimate(
    bundle: str,
    options: GenerationOptions,
    machines: tuple[str, ...],
    calibrated: bool,
    save: Path | None,
    run: RunOptions,
) -> list[Estimate]:
    """Print the cost of a clip on each machine; the arguments are those of the command.

    Raises:
        InputError: an option or a machine cannot be used.
        BundleError: the bundle cannot be run, or does not say what it computes.
        OutputError: the file to save to cannot be written.
    """
    if save is not None and not calibrated:
        raise InputError("--save writes what --calibrate measures; give both")
    opened = open_bundle(find_bundle(bundle), check_digests=False)
    manifest = opened.manifest
    plan = plan_square_clip(manifest, options)
    chosen = [find_machine(name) for name in machines]
    if calibrated:
        stay_on_a_node(most_threads(run))  # as generating the clip would
        measured = calibrate(make_engine(opened, run), plan, run=run)
        chosen.insert(0, measured)
        if save is not None:
            write_json(save, measured.to_json())
    elif not chosen:
        chosen = list(MACHINES.values())
    precisions = {manifest.submodels[calls.submodel].precision for calls in plan.submodel_calls}
    if any(machine.projected for machine in chosen) and "int8" in precisions:
        warn("the time of int8 layers is projected as if they were float32; --calibrate measures it")
    estimates = [estimate_clip(manifest, plan, machine, run) for machine in chosen]
    printer = console()
    printer.print(work_table(manifest.name, plan, estimates[0]))
    printer.print(cost_table(plan, chosen, estimates))
    return estimates


def work_table(name: str, plan: ClipPlan, estimate: Estimate) -> Table:
    """Operations by submodel."""
    size = plan.size
    steps = len(plan.denoising.steps)
    title = f"{name}: {size.seconds:g} s of {size.width} x {size.height} pixels, {steps} steps"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("submodel")
    table.add_column("TFLOP", justify="right")
    table.add_column("share", justify="right")
    total = sum(estimate.flop.values())
    for submodel, flop in estimate.flop.items():
        table.add_row(submodel, f"{flop / 1e12:,.4g}", f"{flop / total:.1%}")
    table.add_section()
    table.add_row("all", f"{total / 1e12:,.4g}", "")
    return table


def cost_table(plan: ClipPlan, machines: list[Machine], estimates: list[Estimate]) -> Table:
    """Time, memory, disk and energy by machine."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("machine", "time", "per second of video", "peak memory", "disk", "energy"):
        table.add_column(column, justify="left" if column == "machine" else "right")
    for machine, cost in zip(machines, estimates, strict=True):
        table.add_row(
            machine.name + (" (projected)" if machine.projected else ""),
            _duration(cost.total_seconds),
            _duration(cost.total_seconds / plan.size.seconds),
            f"{cost.peak_bytes / 1e9:.2f} GB",
            f"{cost.disk_bytes / 1e9:.2f} GB",
            f"{cost.joules / 3.6e6:.3f} kWh" if machine.projected else "-",
        )
    table.caption = f"memory peaks during '{estimates[0].peak_stage}'"
    return table


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
