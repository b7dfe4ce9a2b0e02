"""The results of the benchmarks as Markdown and as plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sonic.storage.files import replace_file
from sonic_convert.bench.calls import BUNDLE, PYTORCH, CallTimes
from sonic_convert.bench.clips import BatchTimes, CommandRun

_AFTER_DENOISING = "frames"  # the stage that decodes and encodes them


def write_report(
    path: Path,
    machine: str,
    bundle: str,
    times: CallTimes,
    decoder: CallTimes | None,
    runs: Mapping[float, CommandRun],
    batch: BatchTimes | None,
) -> str:
    """Write and return the report."""
    lines = [f"Bundle {bundle}; {machine}.", "", *_table("One UNet call, 1 x", times)]
    if decoder is not None:
        lines += ["", *_table("One call of the VAE decoder,", decoder)]
    if runs:
        shortest = min(runs)
        lines += [
            "",
            "Whole commands, `sonic generate`:",
            "",
            "| speech | seconds | peak MB | seconds, ratio | memory, ratio | frames and encoding |",
            "|---|---|---|---|---|---|",
        ]
        for length, run in runs.items():
            after = run.stages.get(_AFTER_DENOISING, 0.0)
            lines.append(
                f"| {length:g} s | {run.seconds:.1f} | {run.peak_bytes / 1e6:.0f} | "
                f"{run.seconds / runs[shortest].seconds:.2f} | "
                f"{run.peak_bytes / runs[shortest].peak_bytes:.2f} | {after / run.seconds:.1%} |"
            )
    if batch is not None:
        lines += [
            "",
            f"{batch.clips} clips: one command after another {batch.apart_seconds:.1f} s, one batch "
            f"{batch.together_seconds:.1f} s, {batch.apart_seconds / batch.together_seconds:.2f} times the "
            "throughput (--memory fast).",
        ]
    text = "\n".join(lines) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return text


def _table(title: str, times: CallTimes) -> list[str]:
    lines = [
        f"{title} {times.frames} frames at {times.resolution_pixels} pixels, "
        f"{len(times.seconds[BUNDLE])} alternating runs:",
        "",
        "| engine | median s | fastest s | times PyTorch | the bundle is times as fast | peak GB |",
        "|---|---|---|---|---|---|",
    ]
    for engine, seconds in times.seconds.items():
        beside_torch = f"{times.speed_up(engine, PYTORCH):.2f}" if PYTORCH in times.seconds else ""
        peak = f"{times.peak_bytes[engine] / 1e9:.2f}" if engine in times.peak_bytes else ""
        lines.append(
            f"| {engine} | {times.median(engine):.3f} | {min(seconds):.3f} | "
            f"{beside_torch} | {times.speed_up(BUNDLE, engine):.2f} | {peak} |"
        )
    return lines


def plot_results(folder: Path, times: CallTimes, runs: Mapping[float, CommandRun]) -> list[Path]:
    """Plot the engines, and for clips the time by stage, memory over time, and time over length."""
    from matplotlib.figure import Figure

    paths: list[Path] = []

    def save(figure: Figure, name: str) -> None:
        paths.append(folder / f"{name}.png")
        replace_file(paths[-1], lambda partial: figure.savefig(partial, dpi=120, bbox_inches="tight"))

    figure = Figure(figsize=(6, 0.6 + 0.4 * len(times.seconds)))
    axes = figure.subplots()
    axes.barh(list(times.seconds), [times.median(engine) for engine in times.seconds])
    axes.invert_yaxis()
    axes.set_xlabel("seconds for one UNet call (median)")
    save(figure, "engines")
    if not runs:
        return paths

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
    save(figure, "stages")

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
    save(figure, "memory")

    figure = Figure(figsize=(5, 3))
    axes = figure.subplots()
    axes.plot(list(runs), [run.seconds for run in runs.values()], "o-")
    axes.set_xlabel("seconds of speech")
    axes.set_ylabel("seconds of the run")
    axes.set_xlim(0)
    axes.set_ylim(0)
    save(figure, "length")
    return paths
