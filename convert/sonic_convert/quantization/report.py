"""Writes sensitivities for people to read: a table and a plot."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sonic.storage.files import replace_file, write_json
from sonic_convert.quantization.sensitivity import Sensitivity

_PLOTTED = 40


def write_sensitivity(folder: Path, found: Sequence[Sensitivity]) -> list[Path]:
    """Write ``sensitivity.json``, ``sensitivity.md`` and, where matplotlib is installed, ``sensitivity.png``.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = sorted(found, key=lambda one: -one.error)
    lines = [
        "# Sensitivity",
        "",
        "The relative change of a submodel's outputs (where it denoises: of the denoised latent) when only",
        "this unit is quantized.",
        "",
        "| submodel | unit | layers | parameters | error |",
        "|---|---|---|---|---|",
        *(
            f"| {one.submodel} | {one.unit} | {len(one.layers)} | {one.parameters:,} | {one.error:.2e} |"
            for one in rows
        ),
    ]
    paths = [folder / "sensitivity.json", folder / "sensitivity.md"]
    write_json(paths[0], [asdict(one) for one in rows])
    replace_file(paths[1], lambda partial: partial.write_text("\n".join(lines) + "\n"))
    if importlib.util.find_spec("matplotlib") is not None:
        paths.append(folder / "sensitivity.png")
        _plot(paths[-1], rows)
    return paths


def _plot(path: Path, rows: Sequence[Sensitivity]) -> None:
    from matplotlib.figure import Figure

    shown = rows[:_PLOTTED]
    figure = Figure(figsize=(8, 1 + 0.22 * len(shown)))
    axes = figure.subplots()
    submodels = list(dict.fromkeys(one.submodel for one in rows))
    for index, submodel in enumerate(submodels):
        of_submodel = [(place, one.error) for place, one in enumerate(shown) if one.submodel == submodel]
        if of_submodel:
            places, errors = zip(*of_submodel, strict=True)
            axes.barh(places, errors, color=f"C{index}", label=submodel)
    axes.set_yticks(range(len(shown)), [one.unit for one in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("relative change of the outputs when only this unit is quantized")
    axes.set_title(f"the {len(shown)} most sensitive of {len(rows)} units", fontsize=9)
    axes.legend(frameon=False, loc="lower right")
    replace_file(path, lambda partial: figure.savefig(partial, dpi=120, bbox_inches="tight", format="png"))
