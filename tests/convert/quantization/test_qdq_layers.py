"""What happens to single layers: biases, weights that float16 cannot hold, files beside the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.helper import make_node
from onnx.numpy_helper import from_array

from sonic_convert.quantization import half
from sonic_convert.quantization.qdq import quantize_graph

WIDTH = 16
LINEAR = [
    make_node("MatMul", ["x", "linear.weight"], ["product"], "linear"),
    make_node("Add", ["product", "linear.bias"], ["y"], "add"),
]
CONV = [make_node("Conv", ["x", "conv.weight", "conv.bias"], ["y"], "conv", pads=[1, 1, 1, 1])]


def random_weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """``linear__weight=(4, 4)`` is called ``linear.weight``."""
    random = np.random.default_rng(seed)
    return {name.replace("__", "."): random.normal(size=shape) for name, shape in shapes.items()}


def linear_weights(seed: int) -> dict[str, np.ndarray]:
    return random_weights(seed, linear__weight=(WIDTH, WIDTH), linear__bias=(WIDTH,))


def x_of(seed: int, *shape: int, mean: float = 0.0) -> np.ndarray:
    return (mean + np.random.default_rng(seed + 1000).normal(size=shape)).astype(np.float32)


def mean_error(found: np.ndarray, expected: np.ndarray, axis: tuple[int, ...]) -> float:
    """Of each output over everything else."""
    return float(np.abs((found - expected).mean(axis=axis)).mean())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([-4.0, 3.0]))
def test_the_mean_error_of_a_product_goes_into_its_bias(by_hand, seed: int, mean: float) -> None:
    made = by_hand(LINEAR, linear_weights(seed), [128, WIDTH])
    x = x_of(seed, 128, WIDTH, mean=mean)
    expected = made.values(x)["y"]
    errors = [
        mean_error(made.quantized(x, smooth=False, correct_bias=on)["y"], expected, (0,))
        for on in (True, False)
    ]
    assert errors[0] < 0.4 * errors[1]


def test_a_smoothed_product_is_corrected_as_well(by_hand) -> None:
    norm = make_node("LayerNormalization", ["x", "norm.weight", "norm.bias"], ["normed"], "norm")
    product = make_node("MatMul", ["normed", "linear.weight"], ["product"], "linear")
    gain = np.ones(WIDTH)
    gain[3] = 60
    weights = linear_weights(0) | {"norm.weight": gain, "norm.bias": np.linspace(-4, 6, WIDTH)}
    made = by_hand([norm, product, LINEAR[1]], weights, [128, WIDTH])
    x = x_of(0, 128, WIDTH)
    expected = made.values(x)["y"]
    errors = [mean_error(made.quantized(x, correct_bias=on)["y"], expected, (0,)) for on in (True, False)]
    assert errors[0] < 0.5 * errors[1]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20))
def test_the_mean_error_of_a_convolution_goes_into_its_bias(by_hand, seed: int) -> None:
    weights = random_weights(seed, conv__weight=(6, WIDTH, 3, 3), conv__bias=(6,))
    inside = [make_node("Conv", ["x", "conv.weight", "conv.bias"], ["y"], "conv")]
    made = by_hand(inside, weights, [1, WIDTH, 16, 16])
    x = x_of(seed, 1, WIDTH, 16, 16, mean=3.0)
    expected = made.values(x)["y"]
    errors = [
        mean_error(made.quantized(x, correct_bias=on)["y"], expected, (0, 2, 3)) for on in (True, False)
    ]
    assert errors[0] < errors[1]


def test_a_bias_of_two_products_is_corrected_for_both_or_not_at_all(by_hand) -> None:
    nodes = [
        *LINEAR,
        make_node("MatMul", ["x", "second.weight"], ["other"], "second"),
        make_node("Add", ["other", "linear.bias"], ["z"], "add_second"),
    ]
    weights = linear_weights(0) | random_weights(1, second__weight=(WIDTH, WIDTH))
    made = by_hand(nodes, weights, [128, WIDTH], ["y", "z"])
    x = x_of(0, 128, WIDTH, mean=3.0)
    expected = made.values(x)
    corrected, plain = (made.quantized(x, smooth=False, correct_bias=on) for on in (True, False))
    for name in ("y", "z"):
        left, before = (mean_error(found[name], expected[name], (0,)) for found in (corrected, plain))
        assert left < 1.05 * before


@pytest.mark.parametrize("precision", ["int8", "weights8", "fp16", "fp16-native"])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "transposed Gemm", "Conv", "grouped Conv"])
def test_every_kind_of_layer_stays_near_float32(by_hand, relative_l2, kind: str, precision: str) -> None:
    weights = linear_weights(0) | random_weights(1, conv__weight=(8, 4, 3, 3), conv__bias=(8,))
    inputs = ["x", "linear.weight", "linear.bias"]
    nodes, shape = {
        "MatMul": (LINEAR, [32, WIDTH]),
        "Gemm": ([make_node("Gemm", inputs, ["y"], "linear")], [32, WIDTH]),
        "transposed Gemm": ([make_node("Gemm", inputs, ["y"], "linear", transB=1)], [32, WIDTH]),
        "Conv": (CONV, [2, 4, 12, 12]),
        "grouped Conv": ([make_node(*_grouped(), group=2, pads=[1, 1, 1, 1])], [2, 8, 12, 12]),
    }[kind]
    made = by_hand(nodes, weights, shape)
    assert len(made.layers) == 1
    x = x_of(0, *shape, mean=0.5)
    error = relative_l2(made.quantized(x, precision)["y"], made.values(x)["y"])
    assert 0 < error < (0.02 if precision in ("int8", "weights8") else 1e-3)


def _grouped() -> tuple[str, list[str], list[str], str]:
    return "Conv", ["x", "conv.weight", "conv.bias"], ["y"], "conv"


def test_stacks_of_matrices_have_no_integer_kernels(by_hand, relative_l2) -> None:
    nodes = [make_node("MatMul", ["x", "stack.weight"], ["y"], "stack")]
    made = by_hand(nodes, random_weights(0, stack__weight=(3, WIDTH, WIDTH)), [3, 8, WIDTH])
    x = x_of(0, 3, 8, WIDTH)
    asked, named = (made.quantized(x, kind)["y"] for kind in ("int8", "weights8"))
    assert np.array_equal(asked, named)
    assert 0 < relative_l2(asked, made.values(x)["y"]) < 0.02


@pytest.mark.parametrize("precision", ["fp16", "fp16-native"])
def test_a_weight_that_float16_cannot_hold_stays_in_float32(by_hand, precision: str, tmp_path: Path) -> None:
    for largest, kept in ((65504.0, precision), (65600.0, "fp32")):
        weights = linear_weights(0)
        weights["linear.weight"][2, 3] = -largest
        made = by_hand(LINEAR, weights, [32, WIDTH])
        x = x_of(0, 32, WIDTH) * np.float32(0.01)
        path = made.saved(tmp_path / "source.onnx")
        facts = quantize_graph(path, tmp_path / "target.onnx", {"linear": precision}, made.seen(x))
        assert facts["layers"] == {kept: 1}
        found = made.quantized(x, precision)["y"]
        assert np.isfinite(found).all()
        assert np.array_equal(found, made.values(x)["y"]) == (kept == "fp32")


@pytest.mark.parametrize(("largest", "kept"), [(16000.0, "fp16-native"), (17000.0, "fp16")])
def test_large_values_are_not_computed_in_float16(by_hand, largest: float, kept: str, tmp_path: Path) -> None:
    nodes = [make_node("MatMul", ["x", "linear.weight"], ["y"], "linear")]
    made = by_hand(nodes, {"linear.weight": np.eye(WIDTH)}, [WIDTH, WIDTH])
    x = np.full((WIDTH, WIDTH), -largest, np.float32)
    path = made.saved(tmp_path / "source.onnx")
    facts = quantize_graph(path, tmp_path / "target.onnx", {"linear": "fp16-native"}, made.seen(x))
    assert facts["layers"] == {kept: 1}


@pytest.mark.parametrize("precision", ["int8", "fp16", "weights8", "fp32"])
@pytest.mark.parametrize("widened_at_load", [0, 1 << 20])
def test_weights_beside_the_graph_stay_beside_it(
    by_hand, relative_l2, precision: str, widened_at_load: int, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(half, "SMALL", widened_at_load)
    weights = random_weights(0, linear__weight=(64, 64), linear__bias=(64,))
    made = by_hand(LINEAR, weights, [32, 64])
    x = x_of(0, 32, 64)
    source, target = made.saved(tmp_path / "source.onnx", external=True), tmp_path / "target.onnx"
    quantize_graph(source, target, {"linear": precision}, made.seen(x))
    beside = target.with_name("target.onnx.data").stat().st_size
    assert beside == 64 * 64 * {"int8": 1, "weights8": 1, "fp16": 2, "fp32": 4}[precision]
    assert target.stat().st_size < 4096
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": x})
    assert np.array_equal(found, made.quantized(x, precision)["y"])
    assert relative_l2(found, made.values(x)["y"]) < 0.02


def test_a_convolutions_result_is_rounded_and_a_products_is_not(by_hand, tmp_path: Path) -> None:
    weights = linear_weights(0) | random_weights(1, conv__weight=(8, 4, 3, 3), conv__bias=(8,))
    for nodes, shape, rounded in ((LINEAR, [32, WIDTH], ["x"]), (CONV, [2, 4, 12, 12], ["x", "y/result"])):
        made = by_hand(nodes, weights, shape)
        path = made.saved(tmp_path / "source.onnx")
        every = dict.fromkeys(made.layers, "int8")
        quantize_graph(path, tmp_path / "target.onnx", every, made.seen(x_of(0, *shape)))
        model = onnx.load(str(tmp_path / "target.onnx"))
        found = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
        assert found == [name if name == "x" else "conv/result" for name in rounded]
        assert [value.name for value in model.graph.output] == ["y"]


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
@pytest.mark.parametrize("size", [0.0, 1e-7, 5e-7])
def test_an_output_with_nearly_no_weights_keeps_its_bias(by_hand, kind: str, size: float) -> None:
    weights = random_weights(0, conv__weight=(8, 4, 3, 3), conv__bias=(8,))
    weights["conv.weight"][2] *= size
    weights["conv.bias"][2] = 0.5
    made = by_hand(CONV, weights, [2, 4, 12, 12])
    x = x_of(0, 2, 4, 12, 12)
    if kind == "Gemm":
        weights["conv.weight"] = weights["conv.weight"].reshape(8, 36)
        nodes = [make_node("Gemm", ["x", "conv.weight", "conv.bias"], ["y"], "conv", transB=1)]
        made, x = by_hand(nodes, weights, [32, 36]), x_of(0, 32, 36)
    found = np.moveaxis(made.quantized(x)["y"], 1, 0)[2]
    assert np.abs(found - 0.5).max() < 0.05


def test_a_layer_that_only_saw_zeros_keeps_its_bias(by_hand) -> None:
    weights = random_weights(0, conv__weight=(8, 4, 3, 3), conv__bias=(8,))
    made = by_hand(CONV, weights, [2, 4, 12, 12])
    x = np.zeros((2, 4, 12, 12), np.float32)
    assert np.abs(made.quantized(x)["y"] - made.values(x)["y"]).max() < 0.05


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("widened_at_load", [0, 1 << 20])
def test_pictures_leave_their_row_where_it_does_not_pay(
    by_hand, relative_l2, precision: str, widened_at_load: int, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(half, "SMALL", widened_at_load)
    sizes = {
        "frames": [2, 3, 4, 5, 5], "column": [0] * 9 + [1], "row": [2, 4, 5, -1], "apart": [2, 8, 5, 3, -1],
        "zero": [0], "last": [-1], "four": [4], "whole": [6, 8, 5, 5],
    }  # fmt: skip
    steps = [
        ("Reshape", "x frames", {}), ("Pad", "Reshape0 column", {}),
        ("Transpose", "Pad1", {"perm": [0, 2, 3, 1, 4]}), ("Reshape", "Transpose2 row", {}),
        ("Conv", "Reshape3 conv.weight conv.bias", {"pads": [1, 1, 1, 1]}), ("Reshape", "Conv4 apart", {}),
        ("Slice", "Reshape5 zero last four", {}), ("Transpose", "Slice6", {"perm": [0, 3, 1, 2, 4]}),
        ("Reshape", "Transpose7 whole", {}), ("Relu", "Reshape8", {}),
    ]  # fmt: skip
    tensors = {name: from_array(np.array(values)) for name, values in sizes.items()}
    nodes = [make_node("Constant", [], [name], name, value=tensor) for name, tensor in tensors.items()]
    for index, (operator, inputs, attributes) in enumerate(steps):
        name = "y" if operator == "Relu" else f"{operator}{index}"
        nodes.append(make_node(operator, inputs.split(), [name], name, **attributes))
    made = by_hand(nodes, random_weights(0, conv__weight=(8, 4, 3, 3), conv__bias=(8,)), [6, 4, 5, 5])
    x = x_of(0, 6, 4, 5, 5)
    path, target = made.saved(tmp_path / "source.onnx"), tmp_path / "target.onnx"
    quantize_graph(path, target, {"conv": precision}, made.seen(x))
    operators = [node.op_type for node in onnx.load(str(target)).graph.node]
    alone = precision == "fp16" and not widened_at_load
    assert ("Pad" in operators) is not alone and operators.count("Transpose") == (0 if alone else 2)
    assert relative_l2(made.quantized(x, precision)["y"], made.values(x)["y"]) < 0.02
