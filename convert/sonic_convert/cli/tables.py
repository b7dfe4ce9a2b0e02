"""The results of commands as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sonic.bundle.manifest import Manifest

if TYPE_CHECKING:  # it imports PyTorch
    from sonic_convert.conversion import Conversion


def conversion_table(conversion: Conversion, bundle: Path) -> Table:
    """What each submodel's stages made, and what they took."""
    manifest = conversion.manifest
    table = Table(title=f"{bundle}: {manifest.license}", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("submodel", "nodes", "simplified", "fused", "MB", "rel. L2", "seconds", "peak GB"):
        table.add_column(column, justify="left" if column == "submodel" else "right", no_wrap=True)
    for name, results in conversion.results.items():
        nodes = [str(results[stage].facts["nodes"]) for stage in ("export", "simplify", "fuse")]
        table.add_row(
            name,
            *nodes,
            f"{manifest.submodels[name].bytes / 1e6:.1f}",
            f"{results['check'].facts['relative_l2']:.1e}",
            f"{sum(result.seconds for result in results.values()):.1f}",
            f"{max(result.peak_bytes for result in results.values()) / 1e9:.2f}",
        )
    golden = manifest.verification
    if golden is not None:
        size = sum(file.bytes for file in golden.files)
        table.caption = (
            f"golden vectors {size / 1e6:.1f} MB; their clip has a PSNR of {golden.clip.psnr_db:g} dB"
        )
    return table


def quantization_table(manifest: Manifest, bundle: Path) -> Table:
    """Size and layers of each submodel of a bundle of reduced precision."""
    table = Table(title=f"{bundle}: {manifest.license}", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("submodel", "precision", "MB", "layers"):
        table.add_column(column, justify="right" if column == "MB" else "left", no_wrap=column != "layers")
    for name, info in manifest.submodels.items():
        layers = manifest.quantization["layers"][name].get("layers", {})
        counts = ", ".join(f"{count} {precision}" for precision, count in layers.items())
        table.add_row(name, info.precision, f"{info.bytes / 1e6:.1f}", counts)
    table.caption = f"{sum(file.bytes for file in manifest.files) / 1e6:,.1f} MB in all"
    return table
