"""Lowers quantized layers: QuantizeLinear, DequantizeLinear and the layers between them.

A quantized layer arrives as DequantizeLinear, Conv or MatMul on real values, and possibly QuantizeLinear.
Dequantized tensors remember the integers that they were made from, so that the layer can use these instead;
real values that nothing reads are removed as dead code.
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
from sonic_convert.compilation.values import Quantization, QuantizedConstant, Tensor

#: A larger bias is added separately: where an output's weights are tiny, so is the accumulator's scale.
_LARGEST_BIAS = 2.0**30


def _quantization(state: Lowering, node: onnx.NodeProto) -> Quantization | None:
    """Scale and zero point of a node that has one of each, the zero point int8."""
    scale = np.asarray(state.value(node, 1))
    zero = np.asarray(state.value(node, 2)) if len(node.input) > 2 else np.zeros(1, np.uint8)
    if scale.size != 1 or zero.dtype != np.int8:
        return None
    return Quantization(float(scale.item()), int(zero.item()))


def _quantize(state: Lowering, node: onnx.NodeProto) -> None:
    value, quantization = state.value(node, 0), _quantization(state, node)
    if len(node.input) < 3 or np.asarray(state.value(node, 2)).dtype == np.uint8:
        raise InputError(
            f"the node '{node.name}' has unsigned activations, but ARM's kernels need signed ones; quantize "
            "the full-precision bundle with --isa aarch64"
        )
    if quantization is None or not isinstance(value, Tensor):
        lower_with_tvm_frontend(state, node)
        return
    formula = partial(elementary.quantized_of, scale=quantization.scale, zero_point=quantization.zero_point)
    expression = state.emit.elementwise(formula, value.expression, "quantize")
    state.values[node.output[0]] = Tensor(expression, value.layout, "int8", quantization)


def _dequantize(state: Lowering, node: onnx.NodeProto) -> None:
    value = state.value(node, 0)
    if isinstance(value, np.ndarray):
        scales = np.asarray(state.value(node, 1)).ravel()
        zero = np.asarray(state.value(node, 2)) if len(node.input) > 2 else np.zeros(1, value.dtype)
        axis = attributes_of(node).get("axis", 1) % max(1, value.ndim)
        if zero.any():  # an activation that does not depend on the inputs, such as position embeddings
            along = [-1 if other == axis and zero.size > 1 else 1 for other in range(value.ndim)]
            differences = value.astype(np.int32) - zero.astype(np.int32).reshape(along)
            state.values[node.output[0]] = QuantizedConstant(differences, scales, axis).real()
            return
        state.values[node.output[0]] = QuantizedConstant(value, scales, axis)
        return
    if not isinstance(value, Tensor) or value.quantization is None:
        lower_with_tvm_frontend(state, node)
        return
    quantization = value.quantization
    formula = partial(elementary.dequantized_of, scale=quantization.scale, zero_point=quantization.zero_point)
    expression = state.emit.elementwise(formula, value.expression, "dequantize")
    state.values[node.output[0]] = Tensor(expression, value.layout, integers=value)


def fits_kernel(
    state: Lowering, node: onnx.NodeProto, integers: Tensor, weight: QuantizedConstant, axis: int
) -> bool:
    """Whether an integer kernel can compute a layer whose outputs are the weight's `axis`.

    The weight needs one scale for every output or one in all, and the bias has to have the accumulator's
    scale, or to fit into the accumulator.
    """
    if weight.scales.size > 1 and weight.axis != axis:
        return False
    if node.op_type == "MatMul" or len(node.input) < 3:
        return True
    assert integers.quantization is not None
    bias, outputs = state.value(node, 2), weight.shape[axis]
    if isinstance(bias, QuantizedConstant) and bias.values.dtype == np.int32:
        scales = integers.quantization.scale * _scales(weight, outputs)
        return np.allclose(bias.scales, scales, rtol=1e-5, atol=0)
    units = _accumulator_units(state.array(bias), integers.quantization, weight, outputs)
    return bool(np.abs(units).max() < _LARGEST_BIAS)


def convolve_quantized(
    state: Lowering,
    node: onnx.NodeProto,
    integers: Tensor,
    weight: QuantizedConstant,
    geometry: Convolution,
) -> None:
    """An int8 convolution by the kernel library, with an int8 output where a QuantizeLinear follows."""
    quantization = integers.quantization
    assert quantization is not None
    integers = state.emit.ordered(integers, CHANNELS_LAST)
    outputs = geometry.outputs
    bias = _bias(state, node, quantization, weight, outputs)
    scales = _scales(weight, outputs)
    parameter, key = state.weight(weight.values.transpose(0, 2, 3, 1), scales, bias)
    inputs = [integers.expression, parameter, relax.const(scales), relax.const(bias), key]
    layout = Layout((integers.shape[0], outputs, *geometry.output_size), CHANNELS_LAST)
    more = [*geometry.strides, *geometry.pads]
    _call(state, node.output[0], "quantized_convolution2d", inputs, quantization, more, layout)


def multiply_quantized(
    state: Lowering, node: onnx.NodeProto, integers: Tensor, weight: QuantizedConstant
) -> None:
    """An int8 product with a constant matrix by the kernel library."""
    assert integers.quantization is not None
    transposed = node.op_type == "Gemm" and bool(attributes_of(node).get("transB"))
    matrix = weight.values.T if transposed else weight.values
    outputs = matrix.shape[1]
    output = node.output[0]
    bias = _bias(state, node, integers.quantization, weight, outputs)
    if node.op_type == "MatMul":
        follower = state.only_consumer(output, "Add")
        shape = (*integers.shape[:-1], outputs)
        other = state.vector_operand(follower, output, shape, -1) if follower is not None else None
        units = None if other is None else _accumulator_units(other, integers.quantization, weight, outputs)
        if follower is not None and units is not None and np.abs(units).max() < _LARGEST_BIAS:
            bias = units.astype(np.int32)
            state.done.add(output := follower.output[0])
    rows, like, count = state.emit.as_rows(integers, -1)
    scales = _scales(weight, outputs)
    parameter, key = state.weight(matrix, scales, bias)
    inputs = [rows, parameter, relax.const(scales), relax.const(bias), key]
    layout = state.emit.layout_of_rows(like, outputs)
    _call(state, output, "quantized_linear", inputs, integers.quantization, [], layout, (count, outputs))


def _call(
    state: Lowering, output: str, name: str, inputs: list[object], quantization: Quantization,
    geometry: list[int], layout: Layout, shape: tuple[int, ...] | None = None,
) -> None:  # fmt: skip
    inputs = [*inputs, quantization.scale, quantization.zero_point]
    stored = layout.stored_shape if shape is None else shape
    follower = state.only_consumer(output, "QuantizeLinear")
    after = None if follower is None else _quantization(state, follower)
    if follower is not None and after is not None:
        inputs += [after.scale, after.zero_point]
        expression = state.library(name, [*inputs, *geometry], stored, "int8")
        expression = state.emit.reshape(expression, stored, layout.stored_shape)
        state.values[follower.output[0]] = Tensor(expression, layout, "int8", after)
        state.done.add(follower.output[0])
        return
    expression = state.library(f"{name}_float", [*inputs, *geometry], stored)
    state.values[output] = Tensor(state.emit.reshape(expression, stored, layout.stored_shape), layout)


def _scales(weight: QuantizedConstant, outputs: int) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(weight.scales, (outputs,)), np.float32)


def _bias(
    state: Lowering,
    node: onnx.NodeProto,
    quantization: Quantization,
    weight: QuantizedConstant,
    outputs: int,
) -> np.ndarray:
    """A layer's bias in units of its accumulator's scale, int32 (outputs,)."""
    if node.op_type == "MatMul" or len(node.input) < 3:
        return np.zeros(outputs, np.int32)
    value = state.value(node, 2)
    if isinstance(value, QuantizedConstant) and value.values.dtype == np.int32:
        return np.ascontiguousarray(np.broadcast_to(value.values, (outputs,)))
    return _accumulator_units(state.array(value), quantization, weight, outputs).astype(np.int32)


def _accumulator_units(
    real: np.ndarray, quantization: Quantization, weight: QuantizedConstant, outputs: int
) -> np.ndarray:
    """Real values in units of the scale of a layer's accumulator, rounded: float64 (outputs,)."""
    scale = quantization.scale * _scales(weight, outputs).astype(np.float64)
    return np.rint(np.broadcast_to(real, (outputs,)) / scale)


HANDLERS: dict[str, Handler] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
"""How each operator of this module is lowered."""
