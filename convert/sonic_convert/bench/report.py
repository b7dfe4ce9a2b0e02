"""The results of the benchmarks as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sonic.storage.files import replace_file
from sonic_convert.bench.calls import BUNDLE, PYTORCH, CallTimes
from sonic_convert.bench.clips import BatchTimes
from sonic_convert.bench.commands import CommandRun
from sonic_convert.bench.company import CompanyTimes
from sonic_convert.bench.presets import PresetTimes
from sonic_convert.bench.suite import Results

_AFTER_DENOISING = "frames"  # the stage that decodes and encodes them


def write_report(path: Path, results: Results) -> str:
    """Write and return the report."""
    sections = [[f"Bundle {results.bundle}; {results.machine}."]]
    if results.unet is not None:
        sections.append(_calls("One UNet call, 1 x", results.unet))
    if results.vae_decoder is not None:
        sections.append(_calls("One call of the VAE decoder,", results.vae_decoder))
    if results.clips:
        sections.append(_lengths(results.clips))
    if results.batch is not None:
        sections.append([_batch(results.batch)])
    if results.presets is not None:
        sections.append(_presets(results.presets))
    if results.company:
        sections.append(_company(results.company))
    text = "\n\n".join("\n".join(lines) for lines in sections) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return text


def _calls(title: str, times: CallTimes) -> list[str]:
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


def _lengths(runs: Mapping[float, CommandRun]) -> list[str]:
    shortest = min(runs)
    lines = [
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
    return lines


def _batch(batch: BatchTimes) -> str:
    return (
        f"{batch.clips} clips: one command after another {batch.apart_seconds:.1f} s, one batch "
        f"{batch.together_seconds:.1f} s, {batch.apart_seconds / batch.together_seconds:.2f} times the "
        "throughput."
    )


def _presets(times: PresetTimes) -> list[str]:
    lines = [
        f"Whole clips by preset and precision, portrait to MP4, each a process of its own: "
        f"{times.speech_seconds:g} s of speech at {times.resolution_pixels} pixels, "
        f"alternating runs of each: {len(times.presets[0].seconds)}",
        "",
        "| bundle, preset | evaluations | median s | fastest s | denoising s | times PyTorch | "
        "times real time | peak GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    published = times.published
    for runs in ([] if published is None else [published]) + times.presets:
        beside_torch = "" if published is None else f"{runs.speed_up(published):.2f}"
        real_time = times.speech_seconds / runs.median
        lines.append(
            f"| {runs.title} | {runs.evaluations} | {runs.median:.1f} | {min(runs.seconds):.1f} | "
            f"{runs.denoising_seconds:.1f} | {beside_torch} | {real_time:.3g} | "
            f"{runs.peak_bytes / 1e9:.2f} |"
        )
    if published is not None:
        lines += ["", _source(times)]
    return lines


def _source(times: PresetTimes) -> str:
    """How PyTorch's time was found."""
    if times.measured_steps == times.steps:
        return f"PyTorch: full runs of the published sampler with {times.steps} steps."
    return (
        f"PyTorch: full runs with {times.measured_steps} of the published sampler's {times.steps} steps; "
        f"the time of denoising was multiplied by {times.steps}/{times.measured_steps}, all else is as "
        "measured."
    )


def _company(company: list[CompanyTimes]) -> list[str]:
    lines = [
        f"Several processes of `sonic generate` at once, each with the same clip, alternating "
        f"runs of each number: {len(company[0].seconds[1])}",
        "",
        "| bundle, preset | processes | median s until the last ends | fastest s | throughput of one alone |",
        "|---|---|---|---|---|",
    ]
    for times in company:
        for count, seconds in times.seconds.items():
            lines.append(
                f"| {times.title} | {count} | {times.median(count):.1f} | {min(seconds):.1f} | "
                f"{times.throughput(count):.2f} |"
            )
    return lines
