"""The results of the benchmarks as plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sonic.storage.files import replace_file
from sonic_convert.bench.calls import CallTimes
from sonic_convert.bench.commands import CommandRun
from sonic_convert.bench.company import CompanyTimes
from sonic_convert.bench.presets import PresetTimes
from sonic_convert.bench.suite import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_results(folder: Path, results: Results) -> list[Path]:
    """Plot every part that was measured; returns the pictures."""
    paths = []
    for name, figure in _figures(results):
        path = folder / f"{name}.png"
        replace_file(path, partial(figure.savefig, dpi=120, bbox_inches="tight"))
        paths.append(path)
    return paths


def _figures(results: Results) -> Iterator[tuple[str, Figure]]:
    if results.unet is not None:
        yield "engines", _engines(results.unet)
    if results.clips:
        yield "stages", _stages(results.clips)
        yield "memory", _memory(results.clips)
        yield "length", _length(results.clips)
    if results.presets is not None:
        yield "presets", _presets(results.presets)
    if results.company:
        yield "company", _company(results.company)


def _bars(values: Mapping[str, float], label: str) -> Figure:
    """A horizontal bar for every name, from the top, with its value."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.6 + 0.4 * len(values)))
    axes = figure.subplots()
    drawn = axes.barh(list(values), list(values.values()))
    axes.bar_label(drawn, fmt="%.3g", padding=3)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return figure


def _engines(times: CallTimes) -> Figure:
    medians = {engine: times.median(engine) for engine in times.seconds}
    return _bars(medians, "seconds for one UNet call (median)")


def _presets(times: PresetTimes) -> Figure:
    """Speed-ups where PyTorch was timed, or else seconds."""
    published = times.published
    if published is None:
        return _bars({runs.title: runs.median for runs in times.presets}, "seconds for the clip (median)")
    ratios = {runs.title: runs.speed_up(published) for runs in times.presets}
    return _bars(ratios, "times the speed of PyTorch with the published sampler")


def _company(company: list[CompanyTimes]) -> Figure:
    ratios = {
        f"{times.title}: {count}": times.throughput(count) for times in company for count in times.seconds
    }
    return _bars(ratios, "throughput of so many processes, relative to one")


def _stages(runs: Mapping[float, CommandRun]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.6 + 0.4 * len(runs)))
    axes = figure.subplots()
    labels = [f"{length:g} s" for length in runs]
    left = [0.0] * len(runs)
    stages = list(dict.fromkeys(stage for run in runs.values() for stage in run.stages))
    for stage in stages:
        shares = [run.stages.get(stage, 0.0) / run.seconds for run in runs.values()]
        axes.barh(labels, shares, left=left, label=stage)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.barh(labels, [1 - start for start in left], left=left, label="start and end", color="lightgrey")
    axes.invert_yaxis()
    axes.set_xlabel("share of the time")
    axes.set_ylabel("length of the clip")
    axes.legend(bbox_to_anchor=(1, 1), loc="upper left", frameon=False)
    return figure


def _memory(runs: Mapping[float, CommandRun]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    for length, run in runs.items():
        ticks, sizes = zip(*run.memory, strict=True)
        shares, megabytes = [tick / run.seconds for tick in ticks], [size / 1e6 for size in sizes]
        axes.plot(shares, megabytes, label=f"{length:g} s")
    axes.set_xlabel("share of the run's time")
    axes.set_ylabel("resident memory in MB")
    axes.set_ylim(0)
    axes.legend(title="clip", frameon=False)
    return figure


def _length(runs: Mapping[float, CommandRun]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3))
    axes = figure.subplots()
    axes.plot(list(runs), [run.seconds for run in runs.values()], "o-")
    axes.set_xlabel("seconds of speech")
    axes.set_ylabel("seconds of the run")
    axes.set_xlim(0)
    axes.set_ylim(0)
    return figure
