"""Writes what a tuning found: a table, and pictures of cost against quality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sonic.bundle.presets import SpeedName, SpeedPreset
from sonic.storage.files import replace_file, write_json
from sonic_convert.tuning.budget import Measures
from sonic_convert.tuning.choice import Candidate
from sonic_convert.tuning.tune import Tuning

MEASURE_COLUMNS = ("SSIM", "PSNR", "lip sync", "mouth", "identity", "border")
_PLOTTED = {
    "ssim": "SSIM to exact",
    "lip": "lip sync lost",
    "mouth": "mouth amplitude, times exact",
    "identity": "identity lost (dB)",
    "sharpness": "change of sharpness",
    "border": "flicker at borders, more than exact",
}


def tuning_table(tuning: Tuning) -> Table:
    """Every plan that was judged, the chosen ones marked."""
    table = Table(
        title=f"{tuning.bundle}: {tuning.exact_evaluations} evaluations a window in 'exact'",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    columns = ("evaluations", "steps", "audio x", *MEASURE_COLUMNS, "preset")
    for column in columns:
        table.add_column(column, justify="left" if column == "preset" else "right")
    names = _names_by_plan(tuning.chosen)
    for one in tuning.candidates:
        table.add_row(*_row(one.preset, one.mean), ", ".join(names.get(one.preset, ())))
    if tuning.unseen:
        table.add_section()
        for name, measures in tuning.unseen.items():
            table.add_row(*_row(tuning.chosen[name].preset, measures), f"{name}, unseen clip")
    return table


def write_tuning(folder: Path, tuning: Tuning, frames: Mapping[str, np.ndarray]) -> list[Path]:
    """Write ``tuning.json``, ``frontier.png`` and ``frames.png``.

    Args:
        folder: where the files go.
        tuning: the result.
        frames: some frames of one clip by preset, uint8 (frames, height, width, 3), beside each other.

    Returns:
        The files.

    Raises:
        OutputError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tuning.json", tuning.to_json())
    _save(_frontier(tuning), folder / "frontier.png")
    _save(_sheet(frames), folder / "frames.png")
    return [folder / name for name in ("tuning.json", "frontier.png", "frames.png")]


def measure_cells(measures: Measures) -> tuple[str, ...]:
    """Measures for a table with `MEASURE_COLUMNS`; lip sync and identity are better with "+"."""
    return (
        f"{measures.ssim:.4f}",
        f"{measures.psnr:.1f} dB",
        "-" if measures.lip is None else f"{-measures.lip:+.3f}",
        f"{measures.mouth - 1:+.1%}",
        f"{-measures.identity:+.2f} dB",
        "-" if measures.border is None else f"{measures.border:+.3f}",
    )


def _row(preset: SpeedPreset, measures: Measures) -> tuple[str, ...]:
    plan = (str(preset.evaluations), str(len(preset.steps)), f"{preset.audio_guidance_factor:g}")
    return (*plan, *measure_cells(measures))


def _names_by_plan(chosen: Mapping[SpeedName, Candidate]) -> dict[SpeedPreset, list[SpeedName]]:
    names: dict[SpeedPreset, list[SpeedName]] = {}
    for name, candidate in chosen.items():
        names.setdefault(candidate.preset, []).append(name)
    return names


def _frontier(tuning: Tuning) -> Figure:
    """Cost against each measure; the chosen plans are named."""
    figure = Figure(figsize=(11, 6))
    axes = figure.subplots(2, 3)
    names = _names_by_plan(tuning.chosen)
    for axis, (measure, label) in zip(axes.flat, _PLOTTED.items(), strict=True):
        points = [
            (one.preset, getattr(one.mean, measure))
            for one in tuning.candidates
            if getattr(one.mean, measure) is not None
        ]
        axis.plot(
            [preset.evaluations for preset, _ in points], [value for _, value in points], "o", color="grey"
        )
        for preset, value in points:
            if preset in names:
                axis.plot(preset.evaluations, value, "o", color="C0")
                axis.annotate(
                    "\n".join(names[preset]), (preset.evaluations, value), textcoords="offset points",
                    xytext=(6, 2), fontsize=8, rotation=30,
                )  # fmt: skip
        axis.set_ylabel(label)
        axis.set_xlabel(f"evaluations a window (exact: {tuning.exact_evaluations})")
        axis.margins(0.15)
    figure.tight_layout()
    return figure


def _sheet(frames: Mapping[str, np.ndarray]) -> Figure:
    """Frames of the same moments beside each other, a row for every preset."""
    count = min(len(shown) for shown in frames.values())
    figure = Figure(figsize=(1.8 * count + 0.6, 1.8 * len(frames)))
    axes = figure.subplots(len(frames), count, squeeze=False)
    for row, (name, shown) in zip(axes, frames.items(), strict=True):
        for axis, frame in zip(row, shown, strict=False):
            axis.imshow(frame)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name)
    figure.tight_layout()
    return figure


def _save(figure: Figure, path: Path) -> None:
    replace_file(path, lambda partial: figure.savefig(partial, dpi=110, bbox_inches="tight"))
