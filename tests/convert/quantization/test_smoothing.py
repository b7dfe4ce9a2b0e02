"""Outliers of activations that move into weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.helper import make_node

from sonic.bundle.bundle import Bundle
from sonic_calibration.graphs.layers import find_layers
from sonic_calibration.graphs.stored_graph import StoredGraph, open_with_external_weights
from sonic_calibration.ranges.statistics import choose_range
from sonic_calibration.recording.recordings import Recordings
from sonic_convert.quantization.arithmetic import affine
from sonic_convert.quantization.smoothing import STRENGTHS, Group, Smoothing, find_groups, smooth
from sonic_convert.quantization.topology import Topology

WIDTH = 16
NORM = make_node("LayerNormalization", ["x", "norm.weight", "norm.bias"], ["normed"], "norm")
LINEAR = [
    NORM,
    make_node("MatMul", ["normed", "linear.weight"], ["product"], "linear"),
    make_node("Add", ["product", "linear.bias"], ["y"], "add"),
]
BOTH = frozenset({("norm.weight", 0), ("norm.bias", 0)})


def weights_of(seed: int, outlier: float = 80.0) -> dict[str, np.ndarray]:
    """A norm of which one channel is much larger than the others, and two products."""
    random = np.random.default_rng(seed)
    gain = random.uniform(0.5, 1.5, WIDTH)
    gain[random.integers(WIDTH)] *= outlier
    return {
        "norm.weight": gain,
        "norm.bias": random.normal(size=WIDTH) * 0.1,
        "linear.weight": random.normal(size=(WIDTH, WIDTH)),
        "linear.bias": random.normal(size=WIDTH),
        "second.weight": random.normal(size=(WIDTH, WIDTH)),
    }


def x_of(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed + 1000).normal(size=shape or (64, WIDTH)).astype(np.float32)


def groups_of(made) -> list[Group]:
    return find_groups(Topology(made.graph), list(made.layers.values()))


def smoothed(made, group: Group, x: np.ndarray) -> Smoothing | None:
    seen = made.seen(x)

    def range_of(tensor: str):
        return affine(*choose_range(seen[tensor], "mse"), signed=False)

    return smooth(group, seen, made.graph.load, range_of, signed=False, symmetric=False, per_channel=True)


def folded(graph: StoredGraph, factors: Mapping[Group, np.ndarray]) -> onnx.ModelProto:
    """The graph with divided sources and multiplied rows, in float32."""
    changed = {name: graph.load(name) for name in graph.initializers}

    def scale(name: str, axis: int, by: np.ndarray) -> None:
        shape = [1] * changed[name].ndim
        shape[axis] = -1
        changed[name] = changed[name] * by.reshape(shape)

    for group, by in factors.items():
        for name, axis in group.sources:
            scale(name, axis, 1 / by)
        for layer in group.layers:
            scale(layer.weight, layer.input_axis, by)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(
        numpy_helper.from_array(array.astype(graph.load(name).dtype), name) for name, array in changed.items()
    )
    return model


def test_a_norm_is_the_source_of_what_reads_it(by_hand) -> None:
    made = by_hand(LINEAR, weights_of(0), [64, WIDTH])
    (group,) = groups_of(made)
    assert [layer.name for layer in group.layers] == ["linear"]
    assert group.tensors == ("normed",)
    assert group.sources == BOTH


def test_readers_of_the_same_tensor_are_one_group(by_hand) -> None:
    nodes = [*LINEAR, make_node("Gemm", ["normed", "second.weight"], ["z"], "second", transB=1)]
    made = by_hand(nodes, weights_of(0), [64, WIDTH], ["y", "z"])
    (group,) = groups_of(made)
    assert {layer.name for layer in group.layers} == {"linear", "second"}
    assert group.sources == BOTH
    rounded = [layer for layer in made.layers.values() if layer.name == "linear"]
    assert find_groups(Topology(made.graph), rounded) == []  # the other one reads it in float32


@pytest.mark.parametrize(
    ("more", "results"),
    [
        ([make_node("Relu", ["normed"], ["z"], "relu")], ["y", "z"]),
        ([], ["y", "normed"]),
        ([make_node("Add", ["x", "norm.bias"], ["z"], "shared")], ["y", "z"]),
    ],
    ids=["another node", "a result", "a source of two"],
)
def test_what_is_read_elsewhere_stays_as_it_is(
    by_hand, more: list[onnx.NodeProto], results: list[str]
) -> None:
    assert groups_of(by_hand([*LINEAR, *more], weights_of(0), [64, WIDTH], results)) == []


def test_an_input_of_the_graph_has_no_source(by_hand) -> None:
    nodes = [make_node("MatMul", ["x", "linear.weight"], ["y"], "linear")]
    assert groups_of(by_hand(nodes, weights_of(0), [64, WIDTH])) == []


def test_a_product_and_its_bias_are_sources(by_hand) -> None:
    nodes = [
        make_node("MatMul", ["x", "linear.weight"], ["product"], "linear"),
        make_node("Add", ["product", "linear.bias"], ["sum"], "add"),
        make_node("MatMul", ["sum", "second.weight"], ["y"], "second"),
    ]
    (group,) = groups_of(by_hand(nodes, weights_of(0), [64, WIDTH]))
    assert [layer.name for layer in group.layers] == ["second"]
    assert group.sources == {("linear.weight", 1), ("linear.bias", 0)}


def test_nothing_passes_an_activation_function(by_hand) -> None:
    nodes = [
        make_node("MatMul", ["x", "linear.weight"], ["product"], "linear"),
        make_node("Relu", ["product"], ["positive"], "relu"),
        make_node("MatMul", ["positive", "second.weight"], ["y"], "second"),
    ]
    assert groups_of(by_hand(nodes, weights_of(0), [64, WIDTH])) == []


def test_one_side_of_a_gate_and_the_values_of_attention_are_sources(by_hand) -> None:
    weights = weights_of(0) | {"value.weight": np.eye(WIDTH), "out.weight": np.eye(WIDTH)}
    attention = ["MultiHeadAttention", ["x", "x", "value"], ["mixed"], "mix", "", "com.microsoft"]
    nodes = [
        make_node("MatMul", ["x", "value.weight"], ["value"], "value"),
        make_node(*attention, num_heads=2),
        make_node("MatMul", ["mixed", "out.weight"], ["attended"], "out"),
        make_node("MatMul", ["x", "linear.weight"], ["gate"], "linear"),
        make_node("Sigmoid", ["gate"], ["open"], "open"),
        make_node("Mul", ["open", "attended"], ["gated"], "mul"),
        make_node("MatMul", ["gated", "second.weight"], ["y"], "second"),
    ]
    made = by_hand(nodes, weights, [1, 8, WIDTH])
    found = {group.layers[0].name: group.sources for group in groups_of(made)}
    assert found == {"out": {("value.weight", 1)}, "second": {("out.weight", 1)}}
    by = {group: 2.0 ** np.arange(-8, 8) for group in groups_of(made)}
    x = x_of(0, 1, 8, WIDTH)
    same = type(made)(StoredGraph(made.graph.path, folded(made.graph, by), {}))
    np.testing.assert_allclose(same.values(x)["y"], made.values(x)["y"], rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**20))
def test_factors_change_nothing_as_long_as_nothing_is_rounded(by_hand, seed: int) -> None:
    made = by_hand(LINEAR, weights_of(seed), [64, WIDTH])
    x = x_of(seed)
    (group,) = groups_of(made)
    found = smoothed(made, group, x)
    assert found is not None and found.strength in STRENGTHS
    assert found.factors.shape == (WIDTH,) and found.factors.max() > 4 * found.factors.min()
    model = folded(made.graph, {group: found.factors})
    same = type(made)(StoredGraph(made.graph.path, model, {}))
    expected = made.values(x)["y"]
    np.testing.assert_allclose(same.values(x)["y"], expected, atol=1e-5 * np.abs(expected).max())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(["x86", "aarch64"]), st.booleans())
def test_the_results_of_a_layer_with_an_outlier_get_better(
    by_hand, relative_l2, seed: int, isa: str, symmetric: bool
) -> None:
    made = by_hand(LINEAR, weights_of(seed), [64, WIDTH])
    x = x_of(seed)
    expected = made.values(x)["y"]
    errors = [
        relative_l2(made.quantized(x, isa=isa, symmetric=symmetric, smooth=on)["y"], expected)
        for on in (True, False)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_without_an_outlier_little_is_to_be_gained(by_hand, relative_l2) -> None:
    made = by_hand(LINEAR, weights_of(0, outlier=1), [64, WIDTH])
    x = x_of(0)
    expected = made.values(x)["y"]
    assert relative_l2(made.quantized(x)["y"], expected) < 0.02


def test_what_was_never_seen_as_rows_is_left_alone(by_hand) -> None:
    made = by_hand(LINEAR, weights_of(0), [64, WIDTH])
    (group,) = groups_of(made)
    seen = made.seen(x_of(0))
    seen["normed"].rows = np.zeros((0, 0), np.float32)
    plain = affine(-1, 1, signed=False)
    assert smooth(group, seen, made.graph.load, lambda _: plain, False, False, True) is None


def test_all_groups_of_the_unet_can_be_scaled(bundle: Bundle, recordings: Recordings, relative_l2) -> None:
    graph = StoredGraph.open(bundle.graph_path("unet"))
    groups = find_groups(Topology(graph), find_layers(graph))
    assert len(groups) > 100
    random = np.random.default_rng(0)
    by = {g: 2.0 ** random.integers(-3, 4, g.layers[0].shape[g.layers[0].input_axis]) for g in groups}
    session = open_with_external_weights(folded(graph, by), graph.path.parent)
    sample = recordings.samples("unet")[0]
    found = session.run(["prediction"], sample.arrays("in"))[0]
    assert relative_l2(found, sample.arrays("out")["prediction"]) < 1e-4


@pytest.mark.parametrize("second", ["normed", "x"])
def test_a_weight_of_two_operators_is_scaled_once_or_not(by_hand, relative_l2, second: str) -> None:
    nodes = [*LINEAR, make_node("Gemm", [second, "linear.weight"], ["z"], "second")]
    made = by_hand(nodes, weights_of(0), [64, WIDTH], ["y", "z"])
    x = x_of(0)
    expected, found = made.values(x), made.quantized(x)
    assert relative_l2(found["y"], expected["y"]) < 0.05
    assert relative_l2(found["z"], expected["z"]) < 0.05
