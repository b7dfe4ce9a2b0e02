"""Layers of graphs, and reading and writing weights one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from sonic.bundle.bundle import Bundle
from sonic.bundle.store import open_bundle
from sonic_calibration.graphs.layers import Layer, Use, find_layers
from sonic_calibration.graphs.stored_graph import (
    EXTERNAL_BYTES,
    StoredGraph,
    WeightKeeper,
    WeightWriter,
    open_with_external_weights,
    replace_graph,
)

WEIGHTS = st.dictionaries(
    st.text("ab.:/", min_size=1, max_size=6),
    st.one_of(
        arrays(np.float32, st.sampled_from([(), (0,), (255,), (256,), (257,), (16, 40)]), fill=st.just(1.5)),
        arrays(np.float16, st.sampled_from([(3,), (40, 40)]), fill=st.just(-2)),
        arrays(np.int8, st.sampled_from([(7,), (1025,)]), fill=st.just(-3)),
        arrays(np.int64, st.sampled_from([(2,), (200,)]), fill=st.just(2**40)),
    ),
    max_size=6,
)


@pytest.fixture(scope="module")
def bundle(small) -> Bundle:
    """The small bundle, opened."""
    return open_bundle(small.bundle)


@pytest.fixture(scope="module")
def unet(bundle: Bundle) -> StoredGraph:
    """The UNet of the small bundle."""
    return StoredGraph.open(bundle.graph_path("unet"))


def model_of(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def layers_of(nodes: Sequence[onnx.NodeProto], shapes: dict[str, tuple[int, ...]]) -> list[Layer]:
    model = model_of(nodes, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    return find_layers(graph_of(model))


def graph_of(model: onnx.ModelProto) -> StoredGraph:
    return StoredGraph(Path("model.onnx"), model, {tensor.name: tensor for tensor in model.graph.initializer})


def values_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_every_product_with_weights_is_used_by_one_layer(unet: StoredGraph) -> None:
    layers = find_layers(unet)
    assert len({layer.name for layer in layers}) == len(layers) > 400
    expected = [
        (node.input[1], Use(node.name, node.input[0], node.output[0]))
        for node in unet.model.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm")
        and node.input[1] in unet.initializers
        and len(unet.shape(node.input[1])) > 1
    ]
    found = [(layer.weight, use) for layer in layers for use in layer.uses]
    assert len(found) == len(expected)
    assert set(found) == set(expected)
    assert max(len(layer.uses) for layer in layers) == 2  # some weights are shared


@pytest.mark.parametrize("submodel", ["unet", "vae_decoder"])
def test_axes_fit_biases_and_tensors(bundle: Bundle, submodel: str) -> None:
    graph = StoredGraph.open(bundle.graph_path(submodel))
    inferred = onnx.shape_inference.infer_shapes(onnx.load(graph.path), data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    channels = []  # 0 if shape inference fails
    for layer in find_layers(graph):
        assert layer.shape == graph.shape(layer.weight)
        assert layer.parameters == graph.load(layer.weight).size
        outputs, inputs = layer.shape[layer.output_axis], layer.shape[layer.input_axis]
        if layer.bias is not None:
            assert graph.shape(layer.bias) == (outputs,)
        for use in layer.uses:
            channels.append(shapes[use.activation][layer.channel_axis])
            assert channels[-1] in (0, inputs)
            assert shapes[use.output][layer.channel_axis] == outputs
    assert np.count_nonzero(channels) > 0.8 * len(channels)


def test_layers_are_named_after_their_weights(unet: StoredGraph) -> None:
    names = {layer.name: layer for layer in find_layers(unet)}
    layer = names["unet.down_blocks.0.resnets.0.space.conv1"]
    assert (layer.weight, layer.operator) == (f"{layer.name}.weight", "Conv")
    assert layer.bias == f"{layer.name}.bias"
    assert not any("onnx::" in name or name.endswith((".weight", ".transposed")) for name in names)


def test_axes_of_each_operator() -> None:
    found = layers_of(
        [
            helper.make_node("Conv", ["x", "a.weight", "a.bias"], ["1"], "n1"),
            helper.make_node("Conv", ["x", "line.weight"], ["2"], "n2"),
            helper.make_node("MatMul", ["x", "b.weight.transposed"], ["3"], "n3"),
            helper.make_node("MatMul", ["x", "c"], ["4"], "/net/stack/MatMul"),
            helper.make_node("Gemm", ["x", "d.weight", "d.bias"], ["5"], "n5", transB=1),
            helper.make_node("Gemm", ["x", "onnx::e", "6"], ["y"], "/net/plain/Gemm"),
        ],
        {
            "a.weight": (8, 3, 1, 2), "a.bias": (8,), "line.weight": (8, 3, 5), "b.weight.transposed": (3, 8),
            "c": (2, 3, 8), "d.weight": (8, 3), "d.bias": (8,), "onnx::e": (3, 8),
        },
    )  # fmt: skip
    assert [(e.name, e.output_axis, e.input_axis, e.channel_axis, e.bias, e.stacked) for e in found] == [
        ("a", 0, 1, -3, "a.bias", False),
        ("line", 0, 1, -2, None, False),
        ("b", 1, 0, -1, None, False),
        ("net.stack", 2, 1, -1, None, True),
        ("d", 0, 1, -1, "d.bias", False),
        ("net.plain", 1, 0, -1, None, False),  # the bias is computed, not constant
    ]
    assert all((e.shape[e.output_axis], e.shape[e.input_axis]) == (8, 3) for e in found)


def test_shared_weights_are_one_layer_for_each_operator() -> None:
    found = layers_of(
        [
            helper.make_node("MatMul", ["x", "a.weight"], ["1"], "n1"),
            helper.make_node("Gemm", ["1", "a.weight"], ["2"], "n2"),
            helper.make_node("MatMul", ["2", "b.weight"], ["3"], "n3"),
            helper.make_node("MatMul", ["3", "a.weight"], ["y"], "n4"),
        ],
        {"a.weight": (4, 4), "b.weight": (4, 4)},
    )
    names = [(layer.name, layer.operator) for layer in found]
    assert names == [("a", "MatMul"), ("a#2", "Gemm"), ("b", "MatMul")]
    assert found[0].uses == (Use("n1", "x", "1"), Use("n4", "3", "y"))
    assert found[1].uses == (Use("n2", "1", "2"),)


@pytest.mark.parametrize(("bias", "transposed"), [("a.bias", 1), ("b.bias", 0)])
def test_products_with_other_axes_or_biases_are_other_layers(bias: str, transposed: int) -> None:
    found = layers_of(
        [
            helper.make_node("Gemm", ["x", "a.weight", "a.bias"], ["1"], "n1"),
            helper.make_node("Gemm", ["1", "a.weight", bias], ["y"], "n2", transB=transposed),
        ],
        {"a.weight": (4, 4), "a.bias": (4,), "b.bias": (4,)},
    )
    assert len(found) == 2


def test_other_products_are_not_layers() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["1"], "of activations"),
        helper.make_node("MatMul", ["a", "1"], ["2"], "weights first"),
        helper.make_node("MatMul", ["a", "b"], ["3"], "of weights"),
        helper.make_node("MatMul", ["2", "vector"], ["4"], "with a vector"),
        helper.make_node("Gemm", ["2", "a"], ["5"], "transposed activation", transA=1),
        helper.make_node("Add", ["5", "a"], ["y"], "not a product"),
    ]
    assert layers_of(nodes, {"a": (4, 4), "b": (4, 4), "vector": (4,)}) == []


def test_weights_are_read_as_onnx_reads_them(unet: StoredGraph, tmp_path: Path) -> None:
    model = onnx.load(unet.path)
    expected = values_of(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=256)
    stored = StoredGraph.open(path)
    before = stored.model.SerializeToString(deterministic=True)
    assert any(tensor.external_data for tensor in stored.initializers.values())
    assert max(len(tensor.raw_data) for tensor in stored.initializers.values()) <= 256
    for graph in (unet, stored):
        assert graph.initializers.keys() == expected.keys()
        for name, values in expected.items():
            read = graph.load(name)
            assert (read.dtype, read.shape, graph.shape(name)) == (values.dtype, values.shape, values.shape)
            np.testing.assert_array_equal(read, values)
    assert stored.model.SerializeToString(deterministic=True) == before  # weights are not kept


@given(WEIGHTS, st.booleans())
def test_written_weights_come_back(
    tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray], external: bool
) -> None:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    with WeightWriter(path, external) as writer:
        for name, array in weights.items():
            assert writer.add(name, array) == name
    empty = model_of([helper.make_node("Identity", ["x"], ["y"])], {})
    onnx.save(replace_graph(empty, empty.graph.node, writer.tensors.values()), path)
    found = values_of(onnx.load(path))
    assert found.keys() == weights.keys()
    graph = StoredGraph.open(path)
    for name, array in weights.items():
        for read in (found[name], graph.load(name)):
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(read, array)
    beside = sum(array.nbytes for array in weights.values() if external and array.nbytes >= EXTERNAL_BYTES)
    data = path.with_name("model.onnx.data")
    assert (data.stat().st_size if data.exists() else 0) == beside
    assert data.exists() == bool(beside)


def test_a_weight_is_written_once_and_its_order_does_not_matter(tmp_path: Path) -> None:
    array = np.arange(600, dtype=np.float32).reshape(20, 30)
    with WeightWriter(tmp_path / "model.onnx", external=True) as writer:
        for _ in range(3):
            writer.add("a", array.T)
    assert (tmp_path / "model.onnx.data").read_bytes() == array.T.tobytes()
    assert tuple(writer.tensors["a"].dims) == (30, 20)


def test_weights_of_another_graph_are_kept(unet: StoredGraph, tmp_path: Path) -> None:
    names = list(unet.initializers)[:20]
    keeper = WeightKeeper()
    with WeightWriter(tmp_path / "model.onnx", external=True) as writer:
        for name in names:
            writer.keep(unet, name)
            keeper.keep(unet, name)
    onnx.save(replace_graph(unet.model, [], writer.tensors.values()), tmp_path / "model.onnx")
    graph = StoredGraph.open(tmp_path / "model.onnx")
    assert list(graph.initializers) == list(keeper.tensors) == names
    for name in names:
        np.testing.assert_array_equal(graph.load(name), unet.load(name))
        assert keeper.tensors[name] is unet.initializers[name]


def test_a_model_in_memory_finds_its_external_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(40, 40)).astype(np.float32), "b": np.ones(40, np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["1"]), helper.make_node("Add", ["1", "b"], ["y"])]
    path = tmp_path / "model.onnx"
    with WeightWriter(path, external=True) as writer:
        for name, array in weights.items():
            writer.add(name, array)
    onnx.save(replace_graph(model_of(nodes, {}), nodes, writer.tensors.values()), path)
    stored, keeper = StoredGraph.open(path), WeightKeeper()
    keeper.keep(stored, "w")
    assert [keeper.add("half", np.full(40, value, np.float32)) for value in (0.5, 7)] == ["half", "half"]
    nodes[1] = helper.make_node("Add", ["1", "half"], ["y"])
    model = replace_graph(stored.model, nodes, keeper.tensors.values())
    x = rng.normal(size=(3, 40)).astype(np.float32)
    (found,) = open_with_external_weights(model, tmp_path).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weights["w"] + 0.5, rtol=1e-4, atol=1e-4)


def test_replacing_a_graph_leaves_its_interface_alone(unet: StoredGraph) -> None:
    before = unet.model.SerializeToString(deterministic=True)
    nodes = unet.model.graph.node[:3]
    changed = replace_graph(unet.model, nodes, [unet.initializers["unet.conv_in.weight"]])
    for field in ("input", "output", "name"):
        assert getattr(changed.graph, field) == getattr(unet.model.graph, field)
    for field in ("ir_version", "opset_import", "metadata_props", "producer_name"):
        assert getattr(changed, field) == getattr(unet.model, field)
    assert list(changed.graph.node) == list(nodes)
    assert [tensor.name for tensor in changed.graph.initializer] == ["unet.conv_in.weight"]
    assert unet.model.graph.value_info and not changed.graph.value_info
    changed.graph.input[0].name = "another"
    assert unet.model.SerializeToString(deterministic=True) == before
