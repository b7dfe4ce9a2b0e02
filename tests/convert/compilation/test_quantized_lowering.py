"""Quantized layers, compiled for this machine, against ONNX Runtime, which computes them in real numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from sonic.errors import InputError
from sonic_convert.compilation.lowering import lower

Agrees = Callable[..., Any]
RANDOM = np.random.default_rng(0)
STEP, ZERO = 0.05, -9  # of activations
OUT_STEP, OUT_ZERO = 0.3, 17  # of a layer's output
NEARLY = 2e-6


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


@dataclass
class Network:
    """Nodes and constants on their way to a graph; what is quantized is named after what it was."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, operator: str, inputs: str, output: str = "y", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs.split(), [output], f"/{output}", **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.weights[name] = np.asarray(value)
        return name

    def quantize(self, name: str, scale: float, zero: int, kind: type = np.int8) -> str:
        what = f"{name} {self.constant(f'{name}.scale', np.float32(scale))}"
        return self.add("QuantizeLinear", f"{what} {self.constant(f'{name}.zero', kind(zero))}", f"{name}.q")

    def dequantize(self, name: str, output: str) -> str:
        return self.add("DequantizeLinear", f"{name}.q {name}.scale {name}.zero", output)

    def rounded(self, name: str, output: str, scale: float = STEP, zero: int = ZERO) -> str:
        """Rounds a tensor: QuantizeLinear and DequantizeLinear."""
        self.quantize(name, scale, zero)
        return self.dequantize(name, output)

    def weight(
        self, name: str, shape: tuple[int, ...], axis: int | None, scales: np.ndarray | None = None
    ) -> str:
        """A weight of random integers, with a scale for every entry of `axis` or one in all."""
        if scales is None:
            scales = RANDOM.uniform(0.005, 0.02, () if axis is None else shape[axis])
        self.constant(f"{name}.q", RANDOM.integers(-127, 128, shape).astype(np.int8))
        self.constant(f"{name}.scale", np.asarray(scales, np.float32))
        self.constant(f"{name}.zero", np.zeros(np.shape(scales), np.int8))
        along: dict[str, Any] = {} if axis is None else {"axis": axis}
        return self.add("DequantizeLinear", f"{name}.q {name}.scale {name}.zero", name, **along)

    def bias(self, name: str, weight: str, outputs: int, integers: np.ndarray | None = None) -> str:
        """A bias in steps of the accumulator of a layer with that weight."""
        scales = np.broadcast_to(self.weights[f"{weight}.scale"], outputs)
        if integers is None:
            integers = RANDOM.integers(-3000, 3000, outputs)
        self.constant(f"{name}.q", integers.astype(np.int32))
        self.constant(f"{name}.scale", (scales * np.float32(STEP)).astype(np.float32))
        self.constant(f"{name}.zero", np.zeros(outputs, np.int32))
        return self.add("DequantizeLinear", f"{name}.q {name}.scale {name}.zero", name, axis=0)


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize(
    ("axis", "weight", "attributes"),
    [
        (0, (7, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
        (0, (7, 6, 3, 2), {"strides": [2, 1], "pads": [0, 2, 1, 0]}),
        (None, (5, 6, 1, 1), {}),
    ],
)
@pytest.mark.parametrize("biased", [False, True])
def test_convolution(
    agrees: Agrees, axis: int | None, weight: Any, attributes: dict[str, Any], biased: bool, integers: bool
) -> None:
    """Outside of the picture is what stands for 0, whatever the zero point."""
    net = Network()
    inputs = [net.rounded("x", "a"), net.weight("w", weight, axis)]
    if biased:
        inputs.append(net.bias("b", "w", weight[0]))
    net.add("Conv", " ".join(inputs), "raw" if integers else "y", **attributes)
    if integers:
        net.rounded("raw", "y", OUT_STEP, OUT_ZERO)
    step = OUT_STEP if integers else 0
    done = agrees(net.nodes, net.weights, {"x": normal(2, 6, 5, 7)}, tolerance=NEARLY, step=step)
    assert done.calls == {f"quantized_convolution2d{'' if integers else '_float'}": 1}
    assert {array.dtype.name for array in done.lowered.weights.values()} == {"int8"}


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("axis", [1, None])
def test_product(agrees: Agrees, axis: int | None, added: bool, integers: bool) -> None:
    net = Network()
    result = net.add("MatMul", f"{net.rounded('x', 'a')} {net.weight('w', (6, 7), axis)}", "p")
    if added:
        result = net.add("Add", f"{net.constant('b', normal(7))} {result}", "s")
    if integers:
        net.rounded(result, "y", OUT_STEP, OUT_ZERO)
    else:
        net.add("Identity", result)
    step = OUT_STEP if integers else 0
    done = agrees(net.nodes, net.weights, {"x": normal(2, 5, 6)}, tolerance=1e-3, step=step)
    assert done.calls == {f"quantized_linear{'' if integers else '_float'}": 1}
    assert done.count("add") == 0


@pytest.mark.parametrize(
    ("shape", "axis", "attributes"),
    [((6, 7), 1, {}), ((7, 6), 0, {"transB": 1}), ((7, 6), None, {"transB": 1})],
)
@pytest.mark.parametrize("bias", ["integers", "real", "none"])
def test_gemm(agrees: Agrees, shape: Any, axis: int | None, attributes: dict[str, Any], bias: str) -> None:
    net = Network()
    inputs = [net.rounded("x", "a"), net.weight("w", shape, axis)]
    if bias == "integers":
        inputs.append(net.bias("b", "w", 7))
    elif bias == "real":
        inputs.append(net.constant("b", normal(7)))
    net.add("Gemm", " ".join(inputs), **attributes)
    tolerance = 1e-3 if bias == "real" else NEARLY
    done = agrees(net.nodes, net.weights, {"x": normal(5, 6)}, tolerance=tolerance)
    assert done.calls == {"quantized_linear_float": 1}


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.integers(-128, 127), st.integers(-128, 127)
)
def test_any_sizes_and_zero_points(
    agrees: Agrees, rows: int, depth: int, outputs: int, zero: int, zero_after: int
) -> None:
    net = Network()
    inputs = f"{net.rounded('x', 'a', STEP, zero)} {net.weight('w', (depth, outputs), 1)}"
    net.rounded(net.add("MatMul", inputs, "p"), "y", OUT_STEP, zero_after)
    agrees(net.nodes, net.weights, {"x": 3 * normal(rows, depth)}, step=OUT_STEP)


def test_layers_one_after_another(agrees: Agrees) -> None:
    """Integers go from layer to layer, and beside them to sums of real numbers."""
    net = Network()
    a = net.rounded("x", "a")
    first = net.add("Conv", f"{a} {net.weight('w', (6, 6, 3, 3), 0)}", "raw", pads=[1, 1, 1, 1])
    b = net.rounded(first, "b", OUT_STEP, OUT_ZERO)
    second = net.add("Conv", f"{b} {net.weight('v', (6, 6, 1, 1), 0)}", "more")
    c = net.rounded(second, "c", 2.0, 0)
    net.add("Add", f"{a} {net.add('Mul', f'{b} {c}', 'd')}", "e")
    turned = net.add("Transpose", "e", "t", perm=[0, 2, 3, 1])
    rows = net.add("Reshape", f"{turned} {net.constant('rows', np.array([2, 35, 6]))}", "r")
    d = net.rounded(rows, "f", 2.0, 3)
    net.add("MatMul", f"{d} {net.weight('u', (6, 4), 1)}")
    done = agrees(net.nodes, net.weights, {"x": normal(2, 6, 5, 7)}, tolerance=0.02)
    assert done.calls == {"quantized_convolution2d": 2, "quantized_linear_float": 1}
    assert done.count("permute_dims") == 2  # of the picture: its integers, and its real numbers


@pytest.mark.parametrize("operator", ["MatMul", "Conv"])
def test_equal_integers_of_other_layers_have_keys_of_their_own(agrees: Agrees, operator: str) -> None:
    """The library keeps scales and biases with the weight."""
    net = Network()
    shape, axis = ((6, 6), 1) if operator == "MatMul" else ((6, 6, 1, 1), 0)
    x = normal(5, 6) if operator == "MatMul" else normal(1, 6, 2, 3)
    a = net.rounded("x", "a")
    outputs = []
    for name in "uvw":
        inputs = [a, net.weight(name, shape, axis)]
        net.weights[f"{name}.q"] = net.weights["u.q"]
        if name == "w":
            net.weights["w.scale"] = net.weights["v.scale"]
        if operator == "Conv":
            inputs.append(net.bias(f"{name}.b", name, 6))
        result = net.add(operator, " ".join(inputs), f"{name}.p")
        if operator == "MatMul":
            result = net.add("Add", f"{result} {net.constant(f'{name}.b', normal(6))}", f"{name}.s")
        outputs.append(result)
    done = agrees(net.nodes, net.weights, {"x": x}, outputs, tolerance=1e-3)
    assert len(done.lowered.weights) == 1 and len(done.lowered.keys) == 3


@pytest.mark.parametrize("operator", ["Transpose", "Reshape", "Concat", "Slice", "Relu"])
def test_integers_that_are_moved(agrees: Agrees, operator: str) -> None:
    """Between QuantizeLinear and DequantizeLinear."""
    net = Network()
    net.quantize("x", STEP, ZERO)
    if operator == "Transpose":
        net.add("Transpose", "x.q", "moved", perm=[0, 2, 3, 1])
    elif operator == "Reshape":
        net.add("Reshape", f"x.q {net.constant('shape', np.array([2, 2, 3, -1]))}", "moved")
    elif operator == "Concat":
        net.add("Concat", "x.q x.q", "moved", axis=1)
    elif operator == "Slice":
        net.constant("one", np.array([1]))
        net.constant("two", np.array([2]))
        net.add("Slice", "x.q one two one", "moved")
    else:
        net.add("Relu", "x.q", "moved")
    net.add("DequantizeLinear", "moved x.scale x.zero")
    agrees(net.nodes, net.weights, {"x": normal(2, 6, 5, 7)}, step=STEP)


def test_a_result_of_integers(agrees: Agrees) -> None:
    net = Network()
    net.quantize("x", STEP, ZERO)
    net.add("Identity", "x.q")
    assert agrees(net.nodes, net.weights, {"x": normal(2, 6)}, step=1).y.dtype == np.int8
    net = Network()
    product = net.add("MatMul", f"{net.rounded('x', 'a')} {net.weight('w', (6, 7), 1)}", "p")
    net.quantize(product, OUT_STEP, OUT_ZERO)
    done = agrees(net.nodes, net.weights, {"x": normal(2, 6)}, ("p.q", "p"), step=1)
    assert done.calls == {"quantized_linear_float": 1}  # the product is asked for, too


@pytest.mark.parametrize(
    ("shape", "attributes", "calls"),
    [
        ((7, 6, 3), {"pads": [1, 1]}, {"convolution2d": 1}),
        ((6, 2, 3, 3), {"group": 3}, {}),
        ((7, 6, 2, 2), {"dilations": [2, 1]}, {}),
    ],
)
def test_convolutions_that_stay_real(agrees: Agrees, shape: Any, attributes: Any, calls: Any) -> None:
    net = Network()
    net.add("Conv", f"{net.rounded('x', 'a')} {net.weight('w', shape, 0)}", **attributes)
    x = normal(2, 6, *([9] * (len(shape) - 2)))
    assert agrees(net.nodes, net.weights, {"x": x}).calls == calls


def test_weights_alone(agrees: Agrees) -> None:
    net = Network()
    net.add("MatMul", f"x {net.weight('w', (6, 7), 1)}", "p")
    table = net.weight("table", (5, 7), 0)
    net.add("Add", f"p {net.add('Gather', f'{table} i', 'g')}")
    feeds = {"x": normal(3, 6), "i": np.array([4, 0, 4])}
    assert agrees(net.nodes, net.weights, feeds).calls == {"linear": 1}


def test_scales_of_inputs_stay_real(agrees: Agrees) -> None:
    net = Network()
    net.add("MatMul", f"{net.rounded('x', 'a')} {net.weight('w', (6, 6), 0)}")
    assert agrees(net.nodes, net.weights, {"x": normal(3, 6)}).calls == {"linear": 1}


# Biases beyond 32 bits


TINY = np.array([0.01, 1e-12, 0.01, 0.01, 0.01, 0.01, 0.01])  # the second output has hardly a weight
BIAS = np.array([1, 30, -2, 0.5, 0, 3, -4], np.float32)


def test_a_huge_number_of_steps_stays_a_sum(agrees: Agrees) -> None:
    net = Network()
    net.add("MatMul", f"{net.rounded('x', 'a')} {net.weight('w', (6, 7), 1, TINY)}", "p")
    net.add("Add", f"p {net.constant('b', BIAS)}")
    done = agrees(net.nodes, net.weights, {"x": normal(5, 6)})
    assert done.calls == {"quantized_linear_float": 1} and done.count("add") == 1


@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
def test_a_layer_of_its_own_with_a_huge_bias_stays_real(agrees: Agrees, operator: str) -> None:
    shape, x = ((7, 6, 1, 1), normal(2, 6, 3, 4)) if operator == "Conv" else ((7, 6), normal(5, 6))
    for tiny, calls in ((TINY, {}), (np.maximum(TINY, 1e-6), {"quantized": 1})):
        net = Network()
        inputs = f"{net.rounded('x', 'a')} {net.weight('w', shape, 0, tiny)} {net.constant('b', BIAS)}"
        attributes: dict[str, Any] = {"transB": 1} if operator == "Gemm" else {}
        net.add(operator, inputs, **attributes)
        done = agrees(net.nodes, net.weights, {"x": x}, tolerance=1e-3)
        assert sum(name.startswith("quantized") for name in done.calls) == sum(calls.values())


def test_a_bias_with_steps_of_its_own(agrees: Agrees) -> None:
    net = Network()
    inputs = f"{net.rounded('x', 'a')} {net.weight('w', (7, 6, 1, 1), 0)} {net.bias('b', 'w', 7)}"
    net.weights["b.scale"] = 3 * net.weights["b.scale"]
    net.add("Conv", inputs)
    agrees(net.nodes, net.weights, {"x": normal(2, 6, 3, 4)})


# Constants


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_constants_with_a_zero_point_are_computed(agrees: Agrees, kind: Any, axis: int | None) -> None:
    """Such as the embedding of positions, which depends on no input."""
    net = Network()
    limits = np.iinfo(kind)
    values = RANDOM.integers(limits.min, limits.max + 1, (6, 7)).astype(kind)
    zeros = RANDOM.integers(1, 100, () if axis is None else (6, 7)[axis]).astype(kind)
    net.constant("c.q", values)
    net.constant("c.scale", RANDOM.uniform(0.01, 0.1, zeros.shape).astype(np.float32))
    net.constant("c.zero", zeros)
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    net.add("DequantizeLinear", "c.q c.scale c.zero", "c", **attributes)
    net.add("Add", "x c")
    agrees(net.nodes, net.weights, {"x": normal(2, 6, 7)}, tolerance=1e-6)


def test_a_constant_activation_is_folded(agrees: Agrees) -> None:
    net = Network()
    net.constant("c", normal(4, 6))
    net.add("MatMul", f"{net.rounded('c', 'a')} {net.weight('w', (6, 7), 1)}", "p")
    net.add("Add", "x p")
    done = agrees(net.nodes, net.weights, {"x": normal(2, 4, 7)})
    assert done.calls == {}


# Errors


@pytest.mark.parametrize("given", [True, False])
def test_unsigned_activations_are_refused(graph_of: Callable[..., onnx.ModelProto], given: bool) -> None:
    net = Network()
    net.quantize("x", STEP, 128, np.uint8)
    if not given:  # as ONNX has it
        net.nodes[0].input.pop()
    net.add("DequantizeLinear", "x.q x.scale x.zero")
    model = graph_of(net.nodes, net.weights, {"x": normal(3)})
    with pytest.raises(InputError, match="'/x.q' has unsigned activations.*--isa aarch64"):
        lower(model, {}, Path())
