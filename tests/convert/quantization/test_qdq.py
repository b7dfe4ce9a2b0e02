"""The small bundle's UNet and decoder with smaller weights and integer arithmetic."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from sonic.bundle.bundle import Bundle
from sonic.errors import InputError
from sonic_calibration.graphs.layers import Layer, find_layers
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.ranges.statistics import TensorStatistics
from sonic_calibration.recording.recordings import Recordings, Sample
from sonic_convert.export.submodels import picture_sizes, unet_sizes
from sonic_convert.quantization import half
from sonic_convert.quantization.plan import preset
from sonic_convert.quantization.qdq import QdqOptions, open_quantized, quantize_graph

ISA = "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86"
INTEGER_PRODUCTS = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm")
HALF, INT8 = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8


@dataclass(frozen=True)
class Network:
    """A submodel of the small bundle, its layers, statistics and calls."""

    graph: StoredGraph
    layers: list[Layer]
    seen: Mapping[str, TensorStatistics]
    samples: list[Sample]
    precisions: dict[str, str]

    def count(self, precision: str, *operators: str) -> int:
        """Nodes of layers that were asked to have a precision."""
        return sum(
            len(layer.uses)
            for layer in self.layers
            if self.precisions[layer.name] == precision and layer.operator in operators and not layer.stacked
        )

    def error(self, session: onnxruntime.InferenceSession) -> float:
        """The relative L2 difference of all calls."""
        changed = whole = 0.0
        for sample in self.samples:
            for name, expected in sample.arrays("out").items():
                found = session.run([name], sample.arrays("in"))[0]
                changed += np.square(found - expected, dtype=np.float64).sum()
                whole += np.square(expected, dtype=np.float64).sum()
        return float(np.sqrt(changed / whole))

    def opened(self, precision: str, **options: object) -> onnxruntime.InferenceSession:
        every = {layer.name: precision for layer in self.layers}
        return open_quantized(self.graph, every, self.seen, QdqOptions(**options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def networks(bundle: Bundle, calibration: Calibration, recordings: Recordings) -> dict[str, Network]:
    found = {}
    for name in ("unet", "vae_decoder"):
        graph = StoredGraph.open(bundle.graph_path(name))
        layers = find_layers(graph)
        precisions = {layer.name: preset("int8").of(name, layer.name) for layer in layers}
        samples = recordings.samples(name)
        found[name] = Network(graph, layers, calibration.tensors[name], samples, precisions)
    return found


@pytest.fixture(scope="module")
def unet(networks: dict[str, Network]) -> Network:
    return networks["unet"]


def optimized(path: Path) -> tuple[onnxruntime.InferenceSession, onnx.ModelProto]:
    """A session of a file, and what ONNX Runtime makes of it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, onnx.load(options.optimized_model_filepath)


def weight_bytes(path: Path, kind: int) -> int:
    """Of the initializers of one type with two or more axes."""
    tensors = StoredGraph.open(path).initializers.values()
    return sum(len(t.raw_data) for t in tensors if t.data_type == kind and len(t.dims) > 1)


# Measured: 0.050 for the UNet and the decoder, in x86 and aarch64.
@pytest.mark.parametrize("name", ["unet", "vae_decoder"])
@pytest.mark.parametrize("isa", ["x86", "aarch64"])
def test_integers_come_near_float32(networks: dict[str, Network], name: str, isa: str) -> None:
    network = networks[name]
    session = open_quantized(network.graph, network.precisions, network.seen, QdqOptions(isa=isa))
    assert 1e-3 < network.error(session) < 0.1


@pytest.mark.parametrize("name", ["unet", "vae_decoder"])
def test_integer_kernels_are_reached(networks: dict[str, Network], name: str, tmp_path: Path) -> None:
    network, path = networks[name], tmp_path / "int8.onnx"
    quantize_graph(network.graph.path, path, network.precisions, network.seen, QdqOptions(isa=ISA))
    found = Counter(node.op_type for node in optimized(path)[1].graph.node)
    assert found["QLinearConv"] == network.count("int8", "Conv") > 40
    assert found["Conv"] == network.count("fp32", "Conv")
    assert sum(found[kind] for kind in INTEGER_PRODUCTS) == network.count("int8", "MatMul", "Gemm")
    assert found["Gemm"] == network.count("fp32", "Gemm")


def test_stacks_of_matrices_get_eight_bit_weights(unet: Network, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    facts = quantize_graph(unet.graph.path, path, unet.precisions, unet.seen, QdqOptions(isa=ISA))
    stacked = [layer for layer in unet.layers if layer.stacked]
    assert facts["layers"]["weights8"] == len(stacked) > 0
    assert facts["parameters"]["weights8"] == sum(layer.parameters for layer in stacked)
    assert facts["layers"]["fp32"] == sum(kind == "fp32" for kind in unet.precisions.values())
    assert sum(facts["layers"].values()) == len(unet.layers)
    assert facts["smoothed_groups"] > 0
    graph = StoredGraph.open(path)
    for layer in stacked:
        tensor = graph.initializers[f"{layer.weight}.int8"]
        assert tensor.data_type == INT8 and tuple(tensor.dims) == layer.shape
        assert graph.shape(f"{layer.weight}.int8.scales") == (layer.shape[-1],)
        assert layer.weight not in graph.initializers


def test_half_weights_are_half_as_large_and_nearly_as_good(
    unet: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "SMALL", 1 << 30)
    path = tmp_path / "fp16.onnx"
    quantize_graph(unet.graph.path, path, {layer.name: "fp16" for layer in unet.layers}, {})
    parameters = sum(layer.parameters for layer in unet.layers)
    assert weight_bytes(path, HALF) == 2 * parameters
    before = weight_bytes(unet.graph.path, onnx.TensorProto.FLOAT)
    assert weight_bytes(path, onnx.TensorProto.FLOAT) == before - 4 * parameters
    session, model = optimized(path)
    assert 0 < unet.error(session) < 1e-3
    assert not any(node.op_type == "Cast" and "weight" in node.output[0] for node in model.graph.node)


def test_large_half_weights_are_widened_when_their_layer_runs(
    unet: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "SMALL", 0)
    monkeypatch.setattr(half, "SHARE_AT_LOAD", 0)
    path = tmp_path / "fp16.onnx"
    quantize_graph(unet.graph.path, path, {layer.name: "fp16" for layer in unet.layers}, {})
    session, model = optimized(path)
    inputs = [value.name for value in unet.graph.model.graph.input]
    assert [value.name for value in session.get_inputs()] == inputs
    halves = {f"{layer.weight}.half" for layer in unet.layers}
    listed = {value.name for value in onnx.load(str(path)).graph.input}
    assert listed == {*inputs, *halves}
    assert {value.name for value in session.get_overridable_initializers()} == halves
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert all(stored[name] == HALF for name in halves)
    casts = Counter(node.op_type for node in model.graph.node)["Cast"]
    assert casts >= sum(len(layer.uses) for layer in unet.layers)
    assert unet.error(session) < 1e-3


def test_the_layers_with_most_positions_do_not_wait(
    unet: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "SMALL", 1 << 10)
    monkeypatch.setattr(half, "SHARE_AT_LOAD", 0.3)
    path, sizes = tmp_path / "fp16.onnx", unet_sizes(1, 8, 32, 32)
    precisions = {layer.name: "fp16" for layer in unet.layers}
    quantize_graph(unet.graph.path, path, precisions, {}, sizes=sizes)
    session, _ = optimized(path)
    waiting = {value.name.removesuffix(".half") for value in session.get_overridable_initializers()}
    large = [layer for layer in unet.layers if layer.parameters > 1 << 10]
    early = [layer for layer in large if layer.weight not in waiting]
    assert waiting <= {layer.weight for layer in large}
    share = sum(layer.parameters for layer in early) / sum(layer.parameters for layer in large)
    assert 0.25 < share <= 0.3
    shapes = half.tensor_shapes(unet.graph, sizes)
    positions = {
        layer.name: sum(math.prod(shapes[use.output]) for use in layer.uses) // layer.shape[layer.output_axis]
        for layer in large
    }
    for operator in ("Conv", "MatMul"):
        kept = [positions[layer.name] for layer in early if layer.operator == operator]
        late = [
            positions[layer.name] for layer in large if layer.weight in waiting and layer.operator == operator
        ]
        assert kept and late and np.median(kept) > 2 * np.median(late)
    assert unet.error(session) < 1e-3


def test_what_follows_a_waiting_layer_is_fused_as_ever(
    unet: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused: list[int] = []
    for name, small, share in (("early", 1 << 30, 0.0), ("late", 0, 0.0)):
        monkeypatch.setattr(half, "SMALL", small)
        monkeypatch.setattr(half, "SHARE_AT_LOAD", share)
        path = tmp_path / f"{name}.onnx"
        precisions = {layer.name: "fp16" for layer in unet.layers}
        quantize_graph(unet.graph.path, path, precisions, {}, sizes=unet_sizes(1, 8, 32, 32))
        fused.append(Counter(node.op_type for node in optimized(path)[1].graph.node)["BiasGelu"])
    assert fused[0] == fused[1] > 0


def test_shapes_are_known_without_the_weights(networks: dict[str, Network]) -> None:
    unet, decoder = networks["unet"].graph, networks["vae_decoder"].graph
    for frames, side in ((3, 16), (8, 32)):
        shapes = half.tensor_shapes(unet, unet_sizes(2, frames, side, side))
        assert shapes["prediction"] == (2, frames, 4, side, side)
        assert half.tensor_shapes(decoder, picture_sizes(side, side, frames))["images"] == (
            frames, 3, 8 * side, 8 * side,
        )  # fmt: skip
    assert "prediction" not in half.tensor_shapes(unet, {})


# Measured: 0.013 and 0.018.
@pytest.mark.parametrize("name", ["unet", "vae_decoder"])
def test_eight_bit_weights_come_near_float32(networks: dict[str, Network], name: str, tmp_path: Path) -> None:
    network, path = networks[name], tmp_path / "weights8.onnx"
    quantize_graph(network.graph.path, path, {layer.name: "weights8" for layer in network.layers}, {})
    assert weight_bytes(path, INT8) == sum(layer.parameters for layer in network.layers)
    session, model = optimized(path)
    assert 1e-4 < network.error(session) < 0.036
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(str(path)).graph.node}


def test_computing_in_float16_runs(networks: dict[str, Network], tmp_path: Path) -> None:
    for network in networks.values():
        path = tmp_path / "native.onnx"
        every = {layer.name: "fp16-native" for layer in network.layers}
        facts = quantize_graph(network.graph.path, path, every, network.seen)
        assert facts["layers"] == {"fp16-native": len(network.layers)}
        assert weight_bytes(path, HALF) == 2 * sum(layer.parameters for layer in network.layers)
        assert 0 < network.error(optimized(path)[0]) < 1.5e-3


@pytest.mark.parametrize("precision", ["int8", "fp16-native"])
def test_a_tensor_that_was_never_seen_is_named(unet: Network, precision: str) -> None:
    missing = next(layer.uses[0].activation for layer in unet.layers[20:] if layer.operator == "Conv")
    seen = {name: statistics for name, statistics in unet.seen.items() if name != missing}
    every = {layer.name: precision for layer in unet.layers}
    with pytest.raises(InputError, match="calibration says nothing of.*sonic-convert calibrate") as caught:
        open_quantized(unet.graph, every, seen)
    assert f"'{missing}'" in str(caught.value)


@pytest.mark.parametrize("precision", ["int8", "fp16", "weights8", "fp16-native"])
def test_the_session_is_that_of_the_file(
    networks: dict[str, Network], precision: str, tmp_path: Path
) -> None:
    network, path = networks["vae_decoder"], tmp_path / "model.onnx"
    every = {layer.name: precision for layer in network.layers}
    quantize_graph(network.graph.path, path, every, network.seen)
    inputs = network.samples[0].arrays("in")
    written, kept = (s.run(None, inputs) for s in (optimized(path)[0], network.opened(precision)))
    assert all(np.array_equal(*pair) for pair in zip(written, kept, strict=True))


def test_layers_without_a_precision_stay_as_they_are(unet: Network, tmp_path: Path) -> None:
    facts = quantize_graph(unet.graph.path, tmp_path / "same.onnx", {}, {})
    assert facts["layers"] == {"fp32": len(unet.layers)}
    same = StoredGraph.open(tmp_path / "same.onnx")
    assert list(same.model.graph.node) == list(unet.graph.model.graph.node)
    assert same.model.graph.output == unet.graph.model.graph.output
    assert all(np.array_equal(same.load(name), unet.graph.load(name)) for name in same.initializers)


@pytest.mark.parametrize("option", [{"isa": "riscv"}, {"method": "guess"}])
def test_an_unknown_option_is_named(option: dict[str, str]) -> None:
    (value,) = option.values()
    with pytest.raises(InputError, match=value):
        QdqOptions(**option)  # type: ignore[arg-type]
