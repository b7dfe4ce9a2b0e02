"""``sonic estimate``: tables of what a clip would cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.table import Table

from sonic.bundle.manifest import Manifest
from sonic.bundle.store import find_bundle, open_bundle
from sonic.bundle.trust import DEFAULT_TRUST, TrustOptions
from sonic.cli.errors import user_errors
from sonic.cli.options import PATH, manifest_for_command, size_options, threads_option, trust_options
from sonic.cli.tables import console
from sonic.costs.calibration import calibrate
from sonic.costs.comparison import Projection, compare, precision_of
from sonic.costs.machines import MACHINES, Machine, combine, find_machine
from sonic.engines.registry import make_engine
from sonic.errors import InputError
from sonic.execution import most_threads
from sonic.host import stay_on_a_node
from sonic.options import GenerationOptions, RunOptions
from sonic.plan import plan_square_clip
from sonic.storage.files import write_json


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@size_options
@click.option(
    "--machine",
    "machines",
    multiple=True,
    help="A server's name, or a JSON file that describes one; repeat it to compare [all known servers].",
)
@click.option("--calibrate", "calibrated", is_flag=True, help="Measure this machine, for about 10 seconds.")
@click.option("--save", type=PATH, help="With --calibrate: write what was measured to this JSON file.")
@click.option("--json", "json_path", type=PATH, help="Write every number to this JSON file.")
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
@threads_option
@trust_options
def estimate(
    bundles: tuple[str, ...],
    options: GenerationOptions,
    machines: tuple[str, ...],
    calibrated: bool,
    save: Path | None,
    json_path: Path | None,
    markdown: bool,
    run: RunOptions,
    trust: TrustOptions,
) -> None:
    """Estimate what a clip of a square portrait costs: operations, time, memory, disk and energy.

    Every BUNDLE, such as one in float32 and one in int8, is estimated with every preset, unless a speed,
    steps or noise levels are asked for.
    """
    with user_errors():
        manifests = {bundle: manifest_for_command(bundle, trust, alone=True) for bundle in bundles}
        chosen = [find_machine(name) for name in machines]
        if calibrated:
            chosen.insert(0, measure_machine(bundles, options, run, save, trust))
        elif save is not None:
            raise InputError("--save writes what --calibrate measures; give both")
        found = compare(_named(manifests), options, chosen or list(MACHINES.values()), run)
        print_tables(found, markdown)
        if json_path is not None:
            write_json(json_path, [projection.to_json() for projection in found])


def measure_machine(
    bundles: Sequence[str],
    options: GenerationOptions,
    run: RunOptions,
    save: Path | None,
    trust: TrustOptions = DEFAULT_TRUST,
) -> Machine:
    """Measure this machine with every bundle, and write its description to the file `save`, if there is one.

    Raises:
        InputError: an option cannot be used.
        BundleError: a bundle cannot be run, or does not say what it computes.
        OutputError: the file cannot be written.
    """
    stay_on_a_node(most_threads(run))  # as generating the clip would
    opened = [open_bundle(find_bundle(bundle), trust, check_digests=False) for bundle in bundles]
    measured = combine(
        [calibrate(make_engine(one, run), plan_square_clip(one.manifest, options), run=run) for one in opened]
    )
    if save is not None:
        write_json(save, measured.to_json())
    return measured


def _named(manifests: Mapping[str, Manifest]) -> Mapping[str, Manifest]:
    """Bundles by what tells them apart: their precisions, or their names, or else what was given."""
    kinds: tuple[Callable[[Manifest], str], ...] = (precision_of, lambda manifest: manifest.name)
    for kind in kinds:
        found = {kind(manifest): manifest for manifest in manifests.values()}
        if len(found) == len(manifests):
            return found
    return manifests


def print_tables(found: Sequence[Projection], markdown: bool = False) -> None:
    """Print the operations, the times of every preset if there are several, and what the chosen one costs."""
    printer = console()
    for clips in _with_equal_work(found):
        printer.print(work_table(clips, markdown))
    if len({projection.speed for projection in found}) > 1:
        printer.print(time_table(found, markdown))
    printer.print(cost_table([projection for projection in found if projection.chosen], markdown))


def _rows(found: Sequence[Projection]) -> list[list[Projection]]:
    """The clips of every machine and bundle; machines may have the same name."""
    rows: dict[tuple[int, str], list[Projection]] = {}
    for projection in found:
        rows.setdefault((id(projection.machine), projection.bundle), []).append(projection)
    machines = [machine for machine, _ in rows]
    return [rows[key] for key in sorted(rows, key=lambda key: machines.index(key[0]))]


def _with_equal_work(found: Sequence[Projection]) -> list[list[Projection]]:
    """The clips of every bundle on the first machine; bundles whose clips have the same work are together."""
    groups: dict[str, list[Projection]] = {}
    for clips in _rows([projection for projection in found if projection.machine is found[0].machine]):
        work = [(clip.plan.denoising.evaluations_per_window, clip.cost.flop) for clip in clips]
        groups.setdefault(repr(work), []).extend(clips)
    return list(groups.values())


def work_table(found: Sequence[Projection], markdown: bool = False) -> Table:
    """Operations by submodel, for the clips of bundles with the same work."""
    clips = [projection for projection in found if projection.bundle == found[0].bundle]
    names = dict.fromkeys(f"{one.manifest.name} ({precision_of(one.manifest)})" for one in found)
    size = clips[0].plan.size
    table = _table(f"{', '.join(names)}: {size.seconds:g} s of {size.width} x {size.height} pixels", markdown)
    table.add_column("TFLOP")
    for clip in clips:
        name = clip.speed or f"{len(clip.plan.denoising.steps)} steps"
        table.add_column(name, justify="right", no_wrap=True)
    single = len(clips) == 1
    if single:
        table.add_column("share", justify="right")
    totals = [sum(clip.cost.flop.values()) for clip in clips]
    for submodel in clips[0].cost.flop:
        flop = [clip.cost.flop[submodel] for clip in clips]
        share = [f"{flop[0] / totals[0]:.1%}"] if single else []
        table.add_row(submodel, *map(_tera, flop), *share)
    if not markdown:
        table.add_section()
    table.add_row("all", *map(_tera, totals), *[""] * single)
    evaluations = [f"{clip.plan.denoising.evaluations_per_window}" for clip in clips]
    table.add_row("evaluations of the UNet for a window", *evaluations, *[""] * single)
    return table


def time_table(found: Sequence[Projection], markdown: bool = False) -> Table:
    """The time of the whole clip: a row for every machine and bundle, a column for every preset."""
    table = _table("time of the whole clip", markdown)
    table.add_column("machine", no_wrap=True)
    table.add_column("bundle")
    for speed in dict.fromkeys(str(projection.speed) for projection in found):
        table.add_column(speed, justify="right", no_wrap=True)
    for clips in _rows(found):
        times = [_duration(clip.cost.total_seconds) for clip in clips]
        table.add_row(_machine_of(clips[0]), clips[0].bundle, *times)
    return table


def cost_table(found: Sequence[Projection], markdown: bool = False) -> Table:
    """Time, memory, disk and energy: a row for every machine and bundle, which has one clip."""
    speeds = ", ".join(dict.fromkeys(projection.speed for projection in found if projection.speed))
    table = _table(f"cost with the speed {speeds}" if speeds else None, markdown)
    for column in ("machine", "bundle", "time", "per second", "peak memory", "disk", "energy"):
        left = column in ("machine", "bundle")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "bundle")
    for (clip,) in _rows(found):
        cost = clip.cost
        table.add_row(
            _machine_of(clip),
            clip.bundle,
            _duration(cost.total_seconds),
            _duration(cost.total_seconds / clip.plan.size.seconds),
            f"{cost.peak_bytes / 1e9:.2f} GB",
            f"{cost.disk_bytes / 1e9:.2f} GB",
            f"{cost.joules / 3.6e6:.3f} kWh" if clip.machine.projected else "-",
        )
    peaks = dict.fromkeys(f"'{clip.cost.peak_stage}'" for clip in found)
    table.caption = f"per second of video; memory peaks during {' and '.join(peaks)}"
    return table


def _table(title: str | None, markdown: bool) -> Table:
    if markdown:
        return Table(title=title, box=MARKDOWN, title_justify="left", caption_justify="left")
    return Table(title=title, box=SIMPLE_HEAD, pad_edge=False)


def _machine_of(projection: Projection) -> str:
    return projection.machine.name + (" (projected)" if projection.cost.projected else "")


def _tera(flop: float) -> str:
    return f"{flop / 1e12:,.0f}" if flop >= 1e15 else f"{flop / 1e12:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
