"""Whole submodels of the small bundle, compiled for this machine, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sonic.bundle.bundle import Bundle
from sonic.bundle.store import open_bundle
from sonic_calibration.graphs.layers import Layer, find_layers
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_calibration.ranges.statistics import TensorStatistics
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.compilation.sizes import COMPILED, Picture, shapes_of
from sonic_convert.export.dimensions import read_dimensions
from sonic_convert.export.submodels import SUBMODELS
from sonic_convert.quantization.qdq import QdqOptions, quantize_graph

Arrays = dict[str, np.ndarray]
Expected = Callable[[onnx.ModelProto | Path, Arrays], Arrays]
PICTURE = Picture(64, 128)
FEWER = {"batch": 2, "frames": 3, "count": 2}
#: What has to go to the library, or to programs of our own.
HEAVY = (
    "matmul", "nn.conv1d", "nn.conv2d", "nn.softmax", "nn.layer_norm", "nn.instance_norm", "nn.group_norm",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(small) -> Bundle:
    return open_bundle(small.bundle)


@pytest.fixture(scope="module")
def example(small, bundle: Bundle) -> Callable[[str], Arrays]:
    """Random inputs of a submodel, of shapes that it is compiled for but for fewer pictures at once."""
    dimensions = read_dimensions(Checkpoint.open(small.checkpoint))

    def make(name: str) -> Arrays:
        sizes = dict(COMPILED[name].sizes(bundle.manifest.constants, PICTURE.height, PICTURE.width)[-1])
        sizes |= {axis: min(sizes[axis], most) for axis, most in FEWER.items() if axis in sizes}
        (row,) = (submodel for submodel in SUBMODELS if submodel.name == name)
        feeds = {key: value.numpy() for key, value in row.example(dimensions, sizes, seed=5).items()}
        shapes = shapes_of(bundle.manifest.submodels[name], sizes)
        assert {key: array.shape for key, array in feeds.items()} == shapes
        return feeds

    return make


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", COMPILED)
def test_float32(
    bundle: Bundle,
    example: Callable[[str], Arrays],
    run_compiled: Callable[..., Any],
    expected_of: Expected,
    name: str,
) -> None:
    path = bundle.graph_path(name)
    feeds = example(name)
    model = onnx.load(str(path), load_external_data=False)
    compiled = run_compiled(model, feeds, path.parent)
    expected = expected_of(path, feeds)
    assert list(expected) == list(compiled.lowered.outputs)
    for key, wanted in expected.items():
        assert compiled.results[key].shape == wanted.shape
        assert relative_l2(compiled.results[key], wanted) <= 1e-5
    left = {operator: count for operator in HEAVY if (count := compiled.count(operator))}
    assert not left


def statistics_of(
    graph: StoredGraph, layers: list[Layer], feeds: Arrays, expected_of: Expected
) -> dict[str, TensorStatistics]:
    """What layers see and return for one call."""
    axes = {
        name: layer.channel_axis
        for layer in layers
        for use in layer.uses
        for name in (use.activation, use.output)
    }
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.ClearField("output")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in axes)
    found = {name: TensorStatistics() for name in axes}
    for name, array in expected_of(model, feeds).items():
        found[name].update(array, axes[name])
    return found


@pytest.mark.parametrize("name", ["vae_decoder", "audio_encoder"])
def test_int8(
    bundle: Bundle,
    example: Callable[[str], Arrays],
    run_compiled: Callable[..., Any],
    expected_of: Expected,
    tmp_path: Path,
    name: str,
) -> None:
    """Quantized for aarch64. The integers of the first layers are the same.

    Later, sums that lie between two integers go one way here and the other way there, and fifty layers make
    as much of that as of the rounding itself, as they do of a millionth that is added to the input.
    """
    graph = StoredGraph.open(bundle.graph_path(name))
    feeds, layers = example(name), find_layers(graph)
    seen = statistics_of(graph, layers, feeds, expected_of)
    real = ("conv_in", "conv_out")
    precisions = {layer.name: "fp32" if layer.name.endswith(real) else "int8" for layer in layers}
    path = tmp_path / "model.onnx"
    options = QdqOptions("aarch64", method="minmax", smooth=False)  # which take no time
    quantize_graph(graph.path, path, precisions, seen, options)
    model = onnx.load(str(path))
    rounded = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    first = rounded[: len(rounded) // 4]
    result = model.graph.output[0].name
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in first)

    compiled = run_compiled(model, feeds)
    flat = [layer.name for layer in layers if len(graph.shape(layer.weight)) == 3]  # they stay real
    calls = sum(count for function, count in compiled.calls.items() if function.startswith("quantized"))
    assert calls == sum(kind == "int8" and layer not in flat for layer, kind in precisions.items())
    expected = expected_of(model, feeds)
    for key in first:
        difference = np.abs(compiled.results[key].astype(np.int32) - expected[key])
        assert difference.max() <= 1 and difference.mean() <= 0.002, key
    full = expected_of(graph.path, feeds)[result]
    lost = relative_l2(expected[result], full)
    assert lost < 0.1
    assert relative_l2(compiled.results[result], full) <= 1.2 * lost
    assert relative_l2(compiled.results[result], expected[result]) <= 1.2 * lost
