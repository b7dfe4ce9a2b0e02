"""What engines ask of a quantized graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.helper import make_node

from sonic.errors import InputError
from sonic_convert.quantization.plan import preset
from sonic_convert.quantization.profiles import PROFILES, check_profile
from sonic_convert.quantization.qdq import QdqOptions, quantize_graph
from sonic_convert.quantization.quantize import QuantizationOptions

NODES = [
    make_node("Conv", ["x", "conv.weight", "conv.bias"], ["wide"], "conv"),
    make_node("Transpose", ["wide"], ["last"], "last", perm=[0, 2, 3, 1]),
    make_node("MatMul", ["last", "linear.weight"], ["product"], "linear"),
    make_node("Add", ["product", "linear.bias"], ["y"], "add"),
]
OTHERS = [
    ("tensorrt", {}, "activations are int8 around zero.*'x' is not rounded to int8"),
    ("tensorrt", {"isa": "aarch64"}, "activations are int8 around zero.*'x' has a zero point"),
    ("timvx", PROFILES["tensorrt"].options, "one scale, not one.*'conv.weight.int8' has several scales"),
]


@pytest.fixture
def quantize(by_hand, tmp_path: Path) -> Callable[..., Path]:
    """Writes a convolution and a product with options."""
    random = np.random.default_rng(0)
    shapes = {"conv.weight": (8, 4, 3, 3), "conv.bias": (8,), "linear.weight": (8, 8), "linear.bias": (8,)}
    weights = {name: random.normal(size=shape) for name, shape in shapes.items()}
    made = by_hand(NODES, weights, [1, 4, 10, 10])
    x = (random.normal(size=(1, 4, 10, 10)) + 0.7).astype(np.float32)

    def write(**options: object) -> Path:
        target = tmp_path / "target.onnx"
        every = dict.fromkeys(made.layers, "int8")
        source = made.saved(tmp_path / "source.onnx")
        quantize_graph(source, target, every, made.seen(x), QdqOptions(**options))  # type: ignore[arg-type]
        return target

    return write


def changed(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The graph with another value of an initializer."""
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
            onnx.save(model, str(path))
            return path
    raise AssertionError(f"no {name}")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profiles_options_lead_to_its_rules(quantize: Callable[..., Path], profile: str) -> None:
    path = quantize(**PROFILES[profile].options)
    check_profile(path, profile)
    check_profile(path, "onnxruntime")


@pytest.mark.parametrize(("profile", "options", "message"), OTHERS)
def test_other_options_break_a_rule_that_is_named(
    quantize: Callable[..., Path], profile: str, options: dict[str, object], message: str
) -> None:
    path = quantize(**options)
    check_profile(path, "onnxruntime")
    with pytest.raises(InputError, match=message) as caught:
        check_profile(path, profile)
    assert str(path) in str(caught.value) and f"'{profile}'" in str(caught.value)


@pytest.mark.parametrize("scale", [-0.5, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["x.scale", "conv.weight.int8.scales"])
def test_a_scale_that_is_not_positive_is_named(
    quantize: Callable[..., Path], name: str, scale: float
) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        values.reshape(-1)[-1] = scale
        return values

    path = changed(quantize(), name, change)
    with pytest.raises(InputError, match=f"the scale '{name}' is not positive"):
        check_profile(path, "onnxruntime")


def test_a_weight_with_a_zero_point_is_named(quantize: Callable[..., Path]) -> None:
    path = changed(quantize(), "linear.weight.int8.zero_points", lambda values: values + np.int8(3))
    with pytest.raises(InputError, match="weight 'linear.weight.int8' has a zero point"):
        check_profile(path, "onnxruntime")


def test_an_unsigned_weight_is_named(quantize: Callable[..., Path]) -> None:
    path = changed(quantize(), "linear.weight.int8", lambda values: np.abs(values).astype(np.uint8))
    with pytest.raises(InputError, match="weight 'linear.weight.int8' is no int8"):
        check_profile(path, "onnxruntime")


def test_integers_that_something_else_reads_are_named(quantize: Callable[..., Path]) -> None:
    path = quantize()
    model = onnx.load(str(path))
    model.graph.node.append(make_node("Cast", ["x.quantized"], ["z"], "thief", to=onnx.TensorProto.FLOAT))
    onnx.save(model, str(path))
    with pytest.raises(InputError, match=r"'x\.quantized' is read by 'thief' \(Cast\)"):
        check_profile(path, "onnxruntime")


def test_integers_that_are_widened_by_another_scale_are_named(quantize: Callable[..., Path]) -> None:
    path = quantize()
    model = onnx.load(str(path))
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == "x.quantized":
            node.input[1] = "wide.scale"
    onnx.save(model, str(path))
    with pytest.raises(InputError, match="'x.quantized' is read by"):
        check_profile(path, "onnxruntime")


def test_options_are_refined_by_the_profile() -> None:
    qdq = QdqOptions(isa="x86", method="entropy", smooth=False)
    refined = QuantizationOptions(preset("int8"), qdq, "timvx").refined
    assert refined == QdqOptions("aarch64", "entropy", False, symmetric=True, per_channel=False)
    assert QuantizationOptions(preset("int8"), qdq).refined == qdq
    with pytest.raises(InputError, match="'npu'.*onnxruntime, tensorrt, timvx"):
        QuantizationOptions(preset("int8"), profile="npu")
