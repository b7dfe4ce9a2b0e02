"""The bundle's UNet against PyTorch's, side by side: ``python -m sonic_convert.bench CHECKPOINT BUNDLE``.

Runs alternate, so that whatever else the machine does slows both; the ratio of medians is the result.
"""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import interpolate

from sonic.cli import user_errors
from sonic.model import load_model
from sonic_convert.checkpoint import Checkpoint
from sonic_convert.parity import published_unet_inputs
from sonic_convert.submodels import SUBMODELS, build_unet, measure


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--frames", type=click.IntRange(1), default=8, show_default=True)
@click.option("--resolution", type=click.IntRange(64), default=256, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
def main(checkpoint: Path, bundle: Path, frames: int, resolution: int, repeats: int) -> None:
    """Time one UNet call of BUNDLE and of CHECKPOINT in PyTorch, batch 1, float32."""
    with user_errors():
        opened, model = Checkpoint.open(checkpoint), load_model(bundle)
        side = resolution // opened.constants.video.latent_stride_pixels
        submodel = next(s for s in SUBMODELS if s.name == "unet")
        sizes = {"batch": 1, "frames": frames, "height": side, "width": side}
        levels = range(measure(opened).levels)
        sizes |= {f"{axis}_{i}": side >> i for axis in ("height", "width") for i in levels}
        inputs = submodel.example(measure(opened), sizes)
        face_mask = torch.zeros(1, 1, resolution, resolution)
        face_mask[..., resolution // 4 : -resolution // 4, resolution // 4 : -resolution // 4] = 1
        for level in levels:
            size = (side >> level, side >> level)
            inputs[f"mask_{level}"] = interpolate(face_mask, size, mode="bicubic")
        unet = build_unet(opened)
        arguments = published_unet_inputs(inputs, face_mask)
        feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
        seconds: dict[str, list[float]] = {"PyTorch, published forward": [], "bundle": []}
        with model.engine.open("unet") as session, torch.inference_mode():
            runs = {
                "PyTorch, published forward": lambda: unet(*arguments),
                "bundle": lambda: session.run(feeds),
            }
            for repeat in range(repeats + 1):  # the first one warms up
                for name, run in runs.items():
                    started = time.perf_counter()
                    run()
                    if repeat:
                        seconds[name].append(time.perf_counter() - started)
    table = Table(title=f"one UNet call, 1 x {frames} frames at {resolution} pixels, {_machine()}")
    for column in ("engine", "median s", "fastest s", "times PyTorch"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    base = statistics.median(seconds["PyTorch, published forward"])
    for name, values in seconds.items():
        median = statistics.median(values)
        table.add_row(name, f"{median:.3f}", f"{min(values):.3f}", f"{base / median:.2f}")
    Console().print(table)


def _machine() -> str:
    """The processor's name and how many threads PyTorch uses."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return f"{name}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
