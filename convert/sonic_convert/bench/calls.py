"""One call of the UNet, or of the VAE decoder, in several engines, side by side.

Runs alternate, so that other load on the machine affects all engines alike; the results are medians of
ratios.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from sonic.bundle.manifest import mask_input
from sonic.engines.onnx import open_session, session_options
from sonic.model import SonicModel
from sonic.progress import Progress
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.export.call_memory import measure_calls
from sonic_convert.export.dimensions import read_dimensions
from sonic_convert.export.submodels import find_submodel, unet_sizes

#: Engines that are timed beside the bundle, by their names on the command line.
ENGINES = ("pytorch", "unfused", "openvino")
PYTORCH = "PyTorch, published forward"
UNFUSED = "ONNX Runtime, unfused graph"
BUNDLE = "the bundle"
OPENVINO = "OpenVINO, the bundle's graph"
# Idle threads of an engine keep spinning for a while: on two cores they would slow down the next engine.
_REST_SECONDS = 0.3


@dataclass(frozen=True)
class CallTimes:
    """Seconds of every run of one call, by engine.

    `peak_bytes` are those of processes that load one graph in ONNX Runtime and call it twice, where they
    could be measured.
    """

    frames: int
    resolution_pixels: int
    seconds: dict[str, list[float]]
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def median(self, engine: str) -> float:
        """The median of an engine's runs."""
        return statistics.median(self.seconds[engine])

    def speed_up(self, engine: str, base: str) -> float:
        """How many times as fast as `base` an engine is: the median of the ratios of their runs."""
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
    engines: Collection[str] = ENGINES,
) -> CallTimes:
    """Time one call, batch 1, in every engine that is installed, and measure its memory in ONNX Runtime.

    Args:
        unfused: the simplified graph that the conversion left in its work folder, or None.
        repeats: runs of each engine after one that warms up.
        others: bundles of other precisions of the same checkpoint, timed too.
        engines: which of `ENGINES` to time beside the bundles; all of them are in memory at once.
    """
    inputs, face_mask = unet_inputs(checkpoint, frames, resolution_pixels)
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    graphs = {UNFUSED: unfused} if unfused is not None and "unfused" in engines else {}
    opened: dict[str, Callable[[], Any]] = {}
    if "pytorch" in engines:
        opened[PYTORCH] = _pytorch(checkpoint, inputs, face_mask)
    with ExitStack() as stack:
        for name, graph in graphs.items():
            opened[name] = partial(open_session(graph, session_options()).run, None, feeds)
        opened |= _open_bundles(stack, "unet", model, others, feeds)
        if importlib.util.find_spec("openvino") is not None and "openvino" in engines:
            opened[OPENVINO] = _openvino(model.engine.bundle.graph_path("unet"), feeds)
        seconds = _alternate(opened, repeats, progress, "one UNet call")
        opened.clear()
    gc.collect()
    graphs |= _graphs("unet", model, others)
    return CallTimes(frames, resolution_pixels, seconds, _peaks(graphs, feeds, progress))


def _peaks(graphs: Mapping[str, Path], feeds: Mapping[str, np.ndarray], progress: Progress) -> dict[str, int]:
    shapes = {name: array.shape for name, array in feeds.items()}
    peaks: dict[str, int] = {}
    with progress.stage("peak memory", len(graphs)) as advance:
        for name, graph in graphs.items():
            if memory := measure_calls(graph, [shapes, shapes]):
                peaks[name] = memory.peak_bytes
            advance()
    return peaks


def bench_decoder(
    model: SonicModel,
    others: Sequence[SonicModel],
    frames: int,
    resolution_pixels: int,
    repeats: int,
    progress: Progress,
) -> CallTimes:
    """Measure time and memory of one call of the VAE decoder in `model` and bundles of other precisions."""
    video = model.constants.video
    side = resolution_pixels // video.latent_stride_pixels
    shape = (frames, video.latent_channels, side, side)
    feeds = {"latents": np.random.default_rng(0).standard_normal(shape, np.float32)}
    with ExitStack() as stack:
        opened = _open_bundles(stack, "vae_decoder", model, others, feeds)
        seconds = _alternate(opened, repeats, progress, "one call of the VAE decoder")
    peaks = _peaks(_graphs("vae_decoder", model, others), feeds, progress)
    return CallTimes(frames, resolution_pixels, seconds, peaks)


def _alternate(
    opened: dict[str, Callable[[], Any]], repeats: int, progress: Progress, title: str
) -> dict[str, list[float]]:
    """Seconds of every run but the first of each, by name."""
    seconds: dict[str, list[float]] = {}
    with progress.stage(title, (repeats + 1) * len(opened)) as advance:
        for repeat in range(repeats + 1):
            for name, run in opened.items():
                time.sleep(_REST_SECONDS)
                started = time.perf_counter()
                run()
                if repeat:
                    seconds.setdefault(name, []).append(time.perf_counter() - started)
                advance()
    return seconds


def unet_inputs(
    checkpoint: Checkpoint, frames: int, resolution_pixels: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random inputs of the exported UNet, with the masks of a face, and that face's mask."""
    side = resolution_pixels // checkpoint.constants.video.latent_stride_pixels
    dimensions = read_dimensions(checkpoint)
    inputs = find_submodel("unet").example(dimensions, unet_sizes(1, frames, side, side))
    quarter = resolution_pixels // 4
    face_mask = torch.zeros(1, 1, resolution_pixels, resolution_pixels)
    face_mask[..., quarter:-quarter, quarter:-quarter] = 1
    for level in range(dimensions.levels):
        inputs[mask_input(level)] = interpolate(face_mask, (side >> level,) * 2, mode="bicubic")
    return inputs, face_mask


def _by_name(model: SonicModel, others: Sequence[SonicModel]) -> dict[str, SonicModel]:
    return {BUNDLE: model} | {f"{BUNDLE} {other.manifest.name}": other for other in others}


def _graphs(submodel: str, model: SonicModel, others: Sequence[SonicModel]) -> dict[str, Path]:
    """The graphs of those bundles that ONNX Runtime runs."""
    return {
        name: each.engine.bundle.graph_path(submodel)
        for name, each in _by_name(model, others).items()
        if each.manifest.engine == "onnxruntime"
    }


def _open_bundles(
    stack: ExitStack,
    submodel: str,
    model: SonicModel,
    others: Sequence[SonicModel],
    feeds: dict[str, np.ndarray],
) -> dict[str, Callable[[], Any]]:
    return {
        name: partial(stack.enter_context(each.engine.open(submodel)).run, feeds)
        for name, each in _by_name(model, others).items()
    }


def _pytorch(
    checkpoint: Checkpoint, inputs: dict[str, torch.Tensor], face_mask: torch.Tensor
) -> Callable[[], Any]:
    submodel = find_submodel("unet")
    unet = submodel.build_published(checkpoint)
    arguments = submodel.published_arguments(inputs, face_mask)

    def run() -> Any:
        with torch.inference_mode():
            return unet(*arguments)

    return run


def _openvino(graph: Path, feeds: dict[str, np.ndarray]) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    # Without the hint, OpenVINO computes in bfloat16 where the processor has it.
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(graph), "CPU", options).create_infer_request()
    return lambda: request.infer(feeds)
