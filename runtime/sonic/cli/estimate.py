"""``sonic estimate``: what a clip would cost, as tables."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sonic.bundle.store import find_bundle, open_bundle
from sonic.costs.calibration import calibrate
from sonic.costs.estimate import Estimate, estimate_clip
from sonic.costs.machines import MACHINES, Machine, find_machine
from sonic.engines.registry import make_engine
from sonic.errors import InputError, warn
from sonic.media.portrait import output_size
from sonic.options import GenerationOptions, RunOptions
from sonic.plan import ClipSize
from sonic.storage.files import write_json


def run_estimate(
    bundle: str,
    duration_seconds: float,
    resolution_pixels: int | None,
    steps: int | None,
    machines: tuple[str, ...],
    calibrated: bool,
    save: Path | None,
    threads: int | None,
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
    options = GenerationOptions(duration_seconds, resolution_pixels, steps).resolved(manifest.constants)
    assert options.resolution_pixels is not None and options.steps is not None
    side = options.resolution_pixels
    width, height = output_size(side, side, side, manifest.constants.portrait.size_multiple_pixels)
    clip = ClipSize(duration_seconds, width, height, options.steps)
    chosen = [find_machine(name) for name in machines]
    if calibrated:
        measured = calibrate(make_engine(opened, RunOptions(threads=threads)), clip)
        chosen.insert(0, measured)
        if save is not None:
            write_json(save, measured.to_json())
    elif not chosen:
        chosen = list(MACHINES.values())
    if any(machine.projected for machine in chosen) and manifest.submodels["unet"].precision == "int8":
        warn("the time of int8 layers is projected as if they were float32; --calibrate measures it")
    estimates = [estimate_clip(manifest, clip, machine) for machine in chosen]
    _print(manifest.name, clip, chosen, estimates, Console())
    return estimates


def _print(
    name: str, clip: ClipSize, machines: list[Machine], estimates: list[Estimate], console: Console
) -> None:
    first = estimates[0]
    title = f"{name}: {clip.seconds:g} s of {clip.width} x {clip.height} pixels, {clip.steps} steps"
    work = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    work.add_column("submodel")
    work.add_column("TFLOP", justify="right")
    work.add_column("share", justify="right")
    total = sum(first.flop.values())
    for submodel, flop in first.flop.items():
        work.add_row(submodel, f"{flop / 1e12:,.4g}", f"{flop / total:.1%}")
    work.add_section()
    work.add_row("all", f"{total / 1e12:,.4g}", "")
    console.print(work)
    costs = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("machine", "time", "per second of video", "peak memory", "disk", "energy"):
        costs.add_column(column, justify="left" if column == "machine" else "right")
    for machine, cost in zip(machines, estimates, strict=True):
        costs.add_row(
            machine.name + (" (projected)" if machine.projected else ""),
            _duration(cost.total_seconds),
            _duration(cost.total_seconds / clip.seconds),
            f"{cost.peak_bytes / 1e9:.2f} GB",
            f"{cost.disk_bytes / 1e9:.2f} GB",
            f"{cost.joules / 3.6e6:.3f} kWh" if machine.projected else "-",
        )
    costs.caption = f"memory peaks during '{first.peak_stage}'"
    console.print(costs)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
