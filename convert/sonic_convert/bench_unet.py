"""One UNet call in several engines, side by side.

Runs alternate, so that whatever else the machine does slows all of them; ratios of medians are the
result.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch.nn.functional import interpolate

from sonic.model import SonicModel
from sonic.progress import Progress
from sonic_convert.checkpoint import Checkpoint
from sonic_convert.parity import published_unet_inputs
from sonic_convert.submodels import SUBMODELS, build_unet, measure, unet_sizes

PYTORCH = "PyTorch, published forward"
UNFUSED = "ONNX Runtime, unfused graph"
BUNDLE = "the bundle"
OPENVINO = "OpenVINO, the bundle's graph"
# Idle threads of an engine spin for a while: on two cores they would slow the engine that comes next.
_REST_SECONDS = 0.3


@dataclass(frozen=True)
class UNetTimes:
    """Seconds of every run of one call, by engine."""

    frames: int
    resolution_pixels: int
    seconds: dict[str, list[float]]

    def median(self, engine: str) -> float:
        """The median of an engine's runs."""
        return statistics.median(self.seconds[engine])

    def speed_up(self, engine: str, base: str) -> float:
        """How many times as fast an engine is as another: the median of the ratios of their runs."""
        pairs = zip(self.seconds[base], self.seconds[engine], strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)


def bench_unet(
    checkpoint: Checkpoint,
    model: SonicModel,
    unfused: Path | None,
    frames: int,
    resolution_pixels: int,
    repeats: int,
    progress: Progress,
    others: Sequence[SonicModel] = (),
) -> UNetTimes:
    """Time one call, batch 1, in every engine that is there.

    Args:
        others: bundles of other precisions of the same checkpoint, timed too.
        unfused: the simplified graph that the conversion left in its work folder, or None.
        repeats: runs of each engine after one that warms up.
    """
    inputs, face_mask = unet_inputs(checkpoint, frames, resolution_pixels)
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    seconds: dict[str, list[float]] = {}
    with (
        _engines(checkpoint, model, unfused, inputs, face_mask, feeds, others) as engines,
        progress.stage("one UNet call", (repeats + 1) * len(engines)) as advance,
    ):
        for repeat in range(repeats + 1):
            for name, run in engines.items():
                time.sleep(_REST_SECONDS)
                started = time.perf_counter()
                run()
                if repeat:
                    seconds.setdefault(name, []).append(time.perf_counter() - started)
                advance()
    return UNetTimes(frames, resolution_pixels, seconds)


def unet_inputs(
    checkpoint: Checkpoint, frames: int, resolution_pixels: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random inputs of the exported UNet, with the masks of a face, and that face's mask."""
    side = resolution_pixels // checkpoint.constants.video.latent_stride_pixels
    submodel = next(submodel for submodel in SUBMODELS if submodel.name == "unet")
    levels = range(measure(checkpoint).levels)
    inputs = submodel.example(measure(checkpoint), unet_sizes(1, frames, side, side))
    quarter = resolution_pixels // 4
    face_mask = torch.zeros(1, 1, resolution_pixels, resolution_pixels)
    face_mask[..., quarter:-quarter, quarter:-quarter] = 1
    for level in levels:
        inputs[f"mask_{level}"] = interpolate(face_mask, (side >> level,) * 2, mode="bicubic")
    return inputs, face_mask


@contextmanager
def _engines(
    checkpoint: Checkpoint,
    model: SonicModel,
    unfused: Path | None,
    inputs: dict[str, torch.Tensor],
    face_mask: torch.Tensor,
    feeds: dict[str, np.ndarray],
    others: Sequence[SonicModel],
) -> Iterator[dict[str, Callable[[], Any]]]:
    unet = build_unet(checkpoint)
    arguments = published_unet_inputs(inputs, face_mask)

    def run_torch() -> Any:
        with torch.inference_mode():
            return unet(*arguments)

    engines: dict[str, Callable[[], Any]] = {PYTORCH: run_torch}
    with ExitStack() as stack:
        session = stack.enter_context(model.engine.open("unet"))
        if unfused is not None:
            plain = onnxruntime.InferenceSession(str(unfused), providers=["CPUExecutionProvider"])
            engines[UNFUSED] = lambda: plain.run(None, feeds)
        engines[BUNDLE] = lambda: session.run(feeds)
        for other in others:
            opened = stack.enter_context(other.engine.open("unet"))
            engines[f"{BUNDLE} {other.manifest.name}"] = partial(opened.run, feeds)
        if importlib.util.find_spec("openvino") is not None:
            engines[OPENVINO] = _openvino(model.engine.bundle.graph_path("unet"), feeds)
        yield engines
        engines.clear()
    gc.collect()


def _openvino(graph: Path, feeds: dict[str, np.ndarray]) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    # Without the hint, OpenVINO computes in bfloat16 where the processor has it.
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(graph), "CPU", options).create_infer_request()
    return lambda: request.infer(feeds)
