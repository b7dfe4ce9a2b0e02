"""How layers of small integers are lowered: QuantizeLinear, DequantizeLinear and what lies between.

A quantized layer arrives as DequantizeLinear, Conv or MatMul in real numbers, and perhaps QuantizeLinear.
What is dequantized remembers the integers that it was made from, so that the layer in between can take them;
real numbers that nobody reads disappear when the program is cleaned up.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
from tvm import relax

from sonic.errors import InputError
from sonic_convert.compilation import elementary
from sonic_convert.compilation.context import Handler, Lowering, attributes_of, lower_with_tvm_frontend
from sonic_convert.compilation.layout import CHANNELS_LAST, Layout
from sonic_convert.compilation.rules import Convolution
from sonic_convert.compilation.values import RoundedConstant, Rounding, Tensor

#: A bias beyond it stays a sum of its own: an output with hardly a weight has very small steps.
_LARGEST_STEPS = 2.0**30


def _rounding(state: Lowering, node: onnx.NodeProto) -> Rounding | None:
    """Scale and zero point of a node with one of each."""
    scale = np.asarray(state.value(node, 1))
    zero = np.asarray(state.value(node, 2)) if len(node.input) > 2 else np.zeros(1, np.uint8)
    if scale.size != 1 or zero.dtype != np.int8:
        return None
    return Rounding(float(scale.item()), int(zero.item()))


def _quantize(state: Lowering, node: onnx.NodeProto) -> None:
    value, rounding = state.value(node, 0), _rounding(state, node)
    if len(node.input) < 3 or np.asarray(state.value(node, 2)).dtype == np.uint8:
        raise InputError(
            f"the node '{node.name}' has unsigned activations, but ARM's kernels want signed ones; quantize "
            "the full-precision bundle with --isa aarch64"
        )
    if rounding is None or not isinstance(value, Tensor):
        lower_with_tvm_frontend(state, node)
        return
    formula = partial(elementary.rounded_of, scale=rounding.scale, zero_point=rounding.zero_point)
    expression = state.emit.elementwise(formula, value.expression, "quantize")
    state.values[node.output[0]] = Tensor(expression, value.layout, "int8", rounding)


def _dequantize(state: Lowering, node: onnx.NodeProto) -> None:
    value = state.value(node, 0)
    if isinstance(value, np.ndarray):
        scales = np.asarray(state.value(node, 1)).ravel()
        zero = np.asarray(state.value(node, 2)) if len(node.input) > 2 else np.zeros(1, value.dtype)
        axis = attributes_of(node).get("axis", 1) % max(1, value.ndim)
        if zero.any():  # an activation that depends on nothing, such as the embedding of positions
            along = [-1 if other == axis and zero.size > 1 else 1 for other in range(value.ndim)]
            differences = value.astype(np.int32) - zero.astype(np.int32).reshape(along)
            state.values[node.output[0]] = RoundedConstant(differences, scales, axis).real()
            return
        state.values[node.output[0]] = RoundedConstant(value, scales, axis)
        return
    if not isinstance(value, Tensor) or value.rounding is None:
        lower_with_tvm_frontend(state, node)
        return
    rounding = value.rounding
    formula = partial(elementary.real_of, scale=rounding.scale, zero_point=rounding.zero_point)
    expression = state.emit.elementwise(formula, value.expression, "dequantize")
    state.values[node.output[0]] = Tensor(expression, value.layout, rounded=value)


def is_exact(
    state: Lowering, node: onnx.NodeProto, integers: Tensor, weight: RoundedConstant, axis: int
) -> bool:
    """Whether a layer whose outputs are the weight's `axis` can be computed with integers.

    Its weight has a scale for every output or one in all, and its bias counts in steps of the accumulator or
    fits into it.
    """
    if weight.scales.size > 1 and weight.axis != axis:
        return False
    if node.op_type == "MatMul" or len(node.input) < 3:
        return True
    assert integers.rounding is not None
    bias, outputs = state.value(node, 2), weight.shape[axis]
    if isinstance(bias, RoundedConstant) and bias.values.dtype == np.int32:
        return np.allclose(bias.scales, integers.rounding.scale * _scales(weight, outputs), rtol=1e-5, atol=0)
    steps = _steps(state.array(bias), integers.rounding, weight, outputs)
    return bool(np.abs(steps).max() < _LARGEST_STEPS)


def convolve_rounded(
    state: Lowering,
    node: onnx.NodeProto,
    integers: Tensor,
    weight: RoundedConstant,
    geometry: Convolution,
) -> None:
    """A convolution of int8 by the kernel library, its output int8 where a QuantizeLinear follows."""
    rounding = integers.rounding
    assert rounding is not None
    integers = state.emit.ordered(integers, CHANNELS_LAST)
    outputs = geometry.outputs
    bias = _bias(state, node, rounding, weight, outputs)
    scales = _scales(weight, outputs)
    parameter, key = state.weight(weight.values.transpose(0, 2, 3, 1), scales, bias)
    inputs = [integers.expression, parameter, relax.const(scales), relax.const(bias), key]
    layout = Layout((integers.shape[0], outputs, *geometry.output_size), CHANNELS_LAST)
    more = [*geometry.strides, *geometry.pads]
    _call(state, node.output[0], "quantized_convolution2d", inputs, rounding, more, layout)


def multiply_rounded(
    state: Lowering, node: onnx.NodeProto, integers: Tensor, weight: RoundedConstant
) -> None:
    """A product of int8 with a constant matrix by the kernel library."""
    assert integers.rounding is not None
    turned = node.op_type == "Gemm" and bool(attributes_of(node).get("transB"))
    matrix = weight.values.T if turned else weight.values
    outputs = matrix.shape[1]
    output = node.output[0]
    bias = _bias(state, node, integers.rounding, weight, outputs)
    if node.op_type == "MatMul":
        follower = state.only_consumer(output, "Add")
        shape = (*integers.shape[:-1], outputs)
        other = state.vector_operand(follower, output, shape, -1) if follower is not None else None
        steps = None if other is None else _steps(other, integers.rounding, weight, outputs)
        if follower is not None and steps is not None and np.abs(steps).max() < _LARGEST_STEPS:
            bias = steps.astype(np.int32)
            state.done.add(output := follower.output[0])
    rows, like, count = state.emit.flat(integers, -1)
    scales = _scales(weight, outputs)
    parameter, key = state.weight(matrix, scales, bias)
    inputs = [rows, parameter, relax.const(scales), relax.const(bias), key]
    layout = state.emit.unflat_layout(like, outputs)
    _call(state, output, "quantized_linear", inputs, integers.rounding, [], layout, (count, outputs))


def _call(
    state: Lowering, output: str, name: str, inputs: list[object], rounding: Rounding, geometry: list[int],
    layout: Layout, shape: tuple[int, ...] | None = None,
) -> None:  # fmt: skip
    inputs = [*inputs, rounding.scale, rounding.zero_point]
    stored = layout.stored_shape if shape is None else shape
    follower = state.only_consumer(output, "QuantizeLinear")
    after = None if follower is None else _rounding(state, follower)
    if follower is not None and after is not None:
        inputs += [after.scale, after.zero_point]
        expression = state.library(name, [*inputs, *geometry], stored, "int8")
        expression = state.emit.reshape(expression, stored, layout.stored_shape)
        state.values[follower.output[0]] = Tensor(expression, layout, "int8", after)
        state.done.add(follower.output[0])
        return
    expression = state.library(f"{name}_float", [*inputs, *geometry], stored)
    state.values[output] = Tensor(state.emit.reshape(expression, stored, layout.stored_shape), layout)


def _scales(weight: RoundedConstant, outputs: int) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(weight.scales, (outputs,)), np.float32)


def _bias(
    state: Lowering,
    node: onnx.NodeProto,
    rounding: Rounding,
    weight: RoundedConstant,
    outputs: int,
) -> np.ndarray:
    """A layer's bias in steps of its accumulator, int32."""
    if node.op_type == "MatMul" or len(node.input) < 3:
        return np.zeros(outputs, np.int32)
    value = state.value(node, 2)
    if isinstance(value, RoundedConstant) and value.values.dtype == np.int32:
        return np.ascontiguousarray(np.broadcast_to(value.values, (outputs,)))
    return _steps(state.array(value), rounding, weight, outputs).astype(np.int32)


def _steps(real: np.ndarray, rounding: Rounding, weight: RoundedConstant, outputs: int) -> np.ndarray:
    """Real numbers in steps of a layer's accumulator, float64 (outputs,)."""
    step = rounding.scale * _scales(weight, outputs).astype(np.float64)
    return np.rint(np.broadcast_to(real, (outputs,)) / step)


HANDLERS: dict[str, Handler] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
"""How each operator of this module is lowered."""
