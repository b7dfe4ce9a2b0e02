"""Lowers arithmetic: to the kernel library, to custom loop nests, or to TVM's operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from tvm import relax

from sonic_convert.compilation import elementary, tensor_programs
from sonic_convert.compilation.context import Handler, Lowering, attributes_of, lower_with_tvm_frontend
from sonic_convert.compilation.layout import CHANNELS_LAST, Layout
from sonic_convert.compilation.quantized_operators import convolve_quantized, fits_kernel, multiply_quantized
from sonic_convert.compilation.rules import TVM, Convolution, function_of
from sonic_convert.compilation.shape_operators import as_tensor, new_shape, with_rank
from sonic_convert.compilation.values import QuantizedConstant, Tensor, Value

_BINARY = {
    "Add": relax.op.add, "Sub": relax.op.subtract, "Mul": relax.op.multiply, "Div": relax.op.divide,
    "Min": relax.op.minimum, "Max": relax.op.maximum, "Pow": relax.op.power,
}  # fmt: skip
_UNARY = {
    "Relu": relax.op.nn.relu, "Sqrt": relax.op.sqrt, "Neg": relax.op.negative, "Abs": relax.op.abs,
    "Sin": relax.op.sin, "Cos": relax.op.cos, "Tanh": relax.op.tanh, "Floor": relax.op.floor,
}  # fmt: skip
_ELEMENTARY = {"Sigmoid": elementary.sigmoid_of, "Erf": elementary.erf_of, "Exp": elementary.exp_of}


def _unary(state: Lowering, node: onnx.NodeProto) -> None:
    value = as_tensor(state.value(node, 0))
    if node.op_type in _UNARY:
        result = state.emit.emit(_UNARY[node.op_type](value.expression))
    else:
        result = state.emit.elementwise(_ELEMENTARY[node.op_type], value.expression, node.op_type.lower())
    state.values[node.output[0]] = Tensor(result, value.layout, value.dtype)


def _binary(state: Lowering, node: onnx.NodeProto) -> None:
    activated = _silu_input(state, node) if node.op_type == "Mul" else ""
    if activated:
        value = as_tensor(state.values[activated])
        result = state.emit.elementwise(elementary.silu_of, value.expression, "silu")
        state.values[node.output[0]] = Tensor(result, value.layout, value.dtype)
        return
    values = [state.value(node, index) for index in range(len(node.input))]
    if len(values) > 2:  # of Min and Max: a constant has to be combined with a tensor
        values.sort(key=lambda value: not isinstance(value, Tensor))
    result = values[0]
    for other in values[1:]:
        result = combine(state, _BINARY[node.op_type], result, other)
    state.values[node.output[0]] = result


def combine(state: Lowering, operation: Any, left: Value, right: Value) -> Tensor:
    """An operation on two values, in the memory order of the larger one."""
    shape = np.broadcast_shapes(left.shape, right.shape)
    values = [with_rank(state, value, len(shape)) for value in (left, right)]
    tensors = [value for value in values if isinstance(value, Tensor)]
    leader = max(tensors, key=lambda value: (np.prod(value.shape), not value.layout.is_plain))
    order = leader.layout.order
    expressions = [state.emit.ordered(value, order).expression for value in values]
    result = state.emit.emit(operation(*expressions))
    return Tensor(result, Layout(tuple(int(size) for size in shape), order), leader.dtype)


def _silu_input(state: Lowering, node: onnx.NodeProto) -> str:
    """The name of x if a product is x times sigmoid(x), otherwise ""."""
    left, right = node.input
    for x, other in ((left, right), (right, left)):
        producer = state.producers.get(other)
        if producer is not None and producer.op_type == "Sigmoid" and producer.input[0] == x:
            return x
    return ""


def _convolution(state: Lowering, node: onnx.NodeProto) -> None:
    value, stored = as_tensor(state.value(node, 0)), state.value(node, 1)
    attributes = attributes_of(node)
    is_1d = len(value.shape) == 3  # computed as a picture of one row
    axes = len(value.shape) - 2
    if axes > 2 or isinstance(stored, Tensor) or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        lower_with_tvm_frontend(state, node)
        return
    pads, strides, dilations = (
        list(attributes.get(name, [default] * axes * (2 if name == "pads" else 1)))
        for name, default in (("pads", 0), ("strides", 1), ("dilations", 1))
    )
    kernel = list(stored.shape[2:])
    if is_1d:
        kernel, strides, dilations = [1, *kernel], [1, *strides], [1, *dilations]
        pads = [0, pads[0], 0, pads[1]]
    size = (1, value.shape[2]) if is_1d else value.shape[2:]
    geometry = Convolution(
        value.shape[1], stored.shape[0], (kernel[0], kernel[1]), (strides[0], strides[1]),
        (dilations[0], dilations[1]), (pads[0], pads[1], pads[2], pads[3]), attributes.get("group", 1),
        (size[0], size[1]),
    )  # fmt: skip
    function = function_of(geometry) if state.use_library else TVM
    if function == TVM:
        lower_with_tvm_frontend(state, node)
        return
    integers = None if is_1d else value.integers
    if isinstance(stored, QuantizedConstant) and integers and fits_kernel(state, node, integers, stored, 0):
        convolve_quantized(state, node, integers, stored, geometry)
    else:
        _library_convolution(state, node, value, state.array(stored), geometry, function)


def _library_convolution(
    state: Lowering,
    node: onnx.NodeProto,
    value: Tensor,
    weight: np.ndarray,
    geometry: Convolution,
    function: str,
) -> None:
    is_1d = len(value.shape) == 3
    if is_1d:
        value = state.emit.reshaped(value, (value.shape[0], value.shape[1], 1, value.shape[2]))
        weight = weight[:, :, None]
    outputs = geometry.outputs
    bias = state.array(state.value(node, 2)) if len(node.input) > 2 else np.zeros(outputs, np.float32)
    value = state.emit.ordered(value, CHANNELS_LAST)
    parameter, key = state.weight(weight.transpose(0, 2, 3, 1))
    batch, size = value.shape[0], geometry.output_size
    inputs = [value.expression, parameter, relax.const(bias), key, *geometry.strides, *geometry.pads]
    expression = state.library(function, inputs, (batch, *size, outputs))
    result = Tensor(expression, Layout((batch, outputs, *size), CHANNELS_LAST))
    if is_1d:
        result = state.emit.reshaped(result, (batch, outputs, size[1]))
    state.values[node.output[0]] = result


def _product(state: Lowering, node: onnx.NodeProto) -> None:
    left, right = state.value(node, 0), state.value(node, 1)
    if not state.use_library or node.op_type == "Gemm" and not _is_linear(state, node):
        lower_with_tvm_frontend(state, node)
        return
    transposed = node.op_type == "Gemm" and bool(attributes_of(node).get("transB"))
    integers = left.integers if isinstance(left, Tensor) else None
    axis = 0 if transposed else 1
    if isinstance(right, QuantizedConstant) and integers and fits_kernel(state, node, integers, right, axis):
        multiply_quantized(state, node, integers, right)
        return
    right = right if isinstance(right, Tensor) else state.array(right)
    if isinstance(right, np.ndarray) and right.ndim == 2:
        right = right.T if transposed else right
        _linear(state, node, as_tensor(left), right)
    else:
        _batch_product(state, node, left, right)


def _is_linear(state: Lowering, node: onnx.NodeProto) -> bool:
    """Whether a Gemm multiplies by a constant matrix and adds a constant vector."""
    attributes = attributes_of(node)
    if attributes.get("transA") or not attributes.get("alpha", 1) == attributes.get("beta", 1) == 1:
        return False
    left, right = state.value(node, 0), state.value(node, 1)
    bias = state.value(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if not isinstance(left, Tensor) or isinstance(right, Tensor) or isinstance(bias, Tensor):
        return False
    outputs = right.shape[0 if attributes.get("transB") else 1]
    return bias.shape in ((), (1,), (outputs,))


def _linear(state: Lowering, node: onnx.NodeProto, value: Tensor, weight: np.ndarray) -> None:
    """A product with a constant matrix, fused with the addition of a constant vector that follows it."""
    output, outputs = node.output[0], weight.shape[1]
    bias = np.zeros(outputs, np.float32)
    if node.op_type == "Gemm" and len(node.input) > 2:
        bias = np.broadcast_to(state.array(state.value(node, 2)), (outputs,))
    follower = state.only_consumer(output, "Add")
    shape = (*value.shape[:-1], outputs)
    other = state.vector_operand(follower, output, shape, -1) if follower is not None else None
    if follower is not None and other is not None:
        bias = bias + other
        state.done.add(output := follower.output[0])
    rows, like, count = state.emit.as_rows(value, -1)
    parameter, key = state.weight(weight)
    arguments = [rows, parameter, relax.const(np.ascontiguousarray(bias, np.float32)), key]
    expression = state.library("linear", arguments, (count, outputs))
    state.values[output] = state.emit.from_rows(expression, like, outputs)


def _batch_product(state: Lowering, node: onnx.NodeProto, left: Value, right: Value) -> None:
    """A batched product: both factors vary over the leading axes, or the second is not constant."""
    a = state.emit.plain(left)
    if isinstance(right, Tensor):
        b = right
    else:
        array = state.array(right)
        b = Tensor(state.parameter(array), Layout.plain(array.shape), array.dtype.name)
    axes = len(b.shape)
    swapped = (*range(axes - 2), axes - 1, axes - 2)
    transposed = not b.layout.is_plain and b.layout.same_memory(swapped)
    b = state.emit.ordered(b, swapped if transposed else range(axes))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    count = int(np.prod(batch))
    expressions = []
    for tensor in (a, b):
        stored = tensor.layout.stored_shape
        expression = tensor.expression
        if int(np.prod(stored[:-2])) != count:
            stored = (*batch, *stored[-2:])
            expression = state.emit.emit(relax.op.broadcast_to(expression, list(stored)))
        expressions.append(state.emit.reshape(expression, stored, (count, *stored[-2:])))
    shape = (count, a.shape[-2], b.shape[-1])
    expression = state.library("batch_matmul", [*expressions, int(transposed)], shape)
    plain = Layout.plain((*(int(size) for size in batch), *shape[1:]))
    expression = state.emit.reshape(expression, shape, plain.stored_shape)
    state.values[node.output[0]] = Tensor(expression, plain)


def _attention(state: Lowering, node: onnx.NodeProto) -> None:
    attributes = attributes_of(node)
    if any(node.input[3:]) or attributes.get("unidirectional"):
        lower_with_tvm_frontend(state, node)
        return
    query, key, value = (state.emit.plain(state.value(node, index)) for index in range(3))
    heads = int(attributes["num_heads"])
    scale = float(attributes.get("scale") or (query.shape[-1] // heads) ** -0.5)
    shape = (*query.shape[:2], value.shape[2])
    if state.use_library:
        inputs = [query.expression, key.expression, value.expression, heads, scale]
        expression = state.library("attention", inputs, shape)
    else:  # matrix products, and a softmax of all scores at once
        parts = []
        for part in (query, key, value):
            by_head = (*part.shape[:2], heads, part.shape[2] // heads)
            parts.append(state.emit.reshape(part.expression, part.shape, by_head))
        attended = state.emit.emit(relax.op.nn.attention(*parts, scale=scale))
        expression = state.emit.reshape(attended, (*shape[:2], *by_head[2:]), shape)
    state.values[node.output[0]] = Tensor(expression, Layout.plain(shape))


def _softmax(state: Lowering, node: onnx.NodeProto) -> None:
    value = as_tensor(state.value(node, 0))
    if not state.use_library:
        lower_with_tvm_frontend(state, node)
        return
    axis = attributes_of(node).get("axis", -1)
    rows, like, count = state.emit.as_rows(value, axis)
    size = value.shape[axis]
    expression = state.library("softmax", [rows], (count, size))
    state.values[node.output[0]] = state.emit.from_rows(expression, like, size)


def _layer_norm(state: Lowering, node: onnx.NodeProto) -> None:
    value = as_tensor(state.value(node, 0))
    rank, gamma = len(value.shape), state.value(node, 1)
    if attributes_of(node).get("axis", -1) % rank != rank - 1 or isinstance(gamma, Tensor):
        lower_with_tvm_frontend(state, node)
        return
    if len(node.input) == 2 and rank == 3 and (np.asarray(gamma) == 1).all() and _group_norm(state, node):
        return
    gamma = np.asarray(gamma)
    beta = np.asarray(state.value(node, 2)) if len(node.input) > 2 else np.zeros_like(gamma)
    rows, like, count = state.emit.as_rows(value, -1)
    channels = value.shape[-1]
    kernel = tensor_programs.layer_norm(count, channels, _epsilon(node))
    inputs = [rows, relax.const(gamma), relax.const(beta)]
    expression = state.emit.program(kernel, "layer_norm", inputs, (count, channels), "float32")
    state.values[node.output[0]] = state.emit.from_rows(expression, like, channels)


def _group_norm(state: Lowering, node: onnx.NodeProto) -> bool:
    """Lower a group normalisation in the form that `fusion` produces; returns whether it is one.

    That form is Reshape, LayerNormalization, Reshape, and in most cases Mul and Add of a gain and an offset.
    Recognised as a whole, it can keep channels last in memory.
    """
    before = state.producers.get(node.input[0])
    after = state.only_consumer(node.output[0], "Reshape")
    if before is None or before.op_type != "Reshape" or after is None:
        return False
    value, split = as_tensor(state.values[before.input[0]]), state.value(node, 0).shape
    channels, groups = value.shape[1], split[1]
    # The shape may be computed later; a gain for the channels then implies that it is the shape from before.
    known = after.input[1] in state.values
    target = new_shape(state, after, split) if known else value.shape
    if split[0] != value.shape[0] or channels % groups or target[:2] != value.shape[:2]:
        return False
    output, activation = after.output[0], None
    scaled = _gain_and_offset(state, output, target)
    if scaled is not None:
        gamma, beta, output = scaled
        activation = _silu_after(state, output)
    elif known:
        gamma, beta = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    else:
        return False
    rest = [axis for axis in value.layout.order if axis not in (0, 1)]
    value = state.emit.ordered(value, (0, *rest, 1))
    batch, positions = value.shape[0], int(np.prod([value.shape[axis] for axis in rest]))
    kernel = tensor_programs.group_norm(
        batch, positions, channels, groups, _epsilon(node), activation is not None
    )
    shape = (batch, positions, channels)
    stored = value.layout.stored_shape
    inputs = [state.emit.reshape(value.expression, stored, shape), relax.const(gamma), relax.const(beta)]
    expression = state.emit.program(kernel, "group_norm", inputs, shape, "float32")
    result = Tensor(state.emit.reshape(expression, shape, stored), value.layout)
    state.done.add(after.output[0])
    state.values[activation or output] = state.emit.reshaped(result, target)
    return True


def _epsilon(node: onnx.NodeProto) -> float:
    return float(attributes_of(node).get("epsilon", 1e-5))


def _gain_and_offset(
    state: Lowering, normed: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, str] | None:
    """The gain and offset of every channel, and the name of the result; marks their nodes as done.

    None where no such Mul and Add follow.
    """
    product = state.only_consumer(normed, "Mul")
    total = product and state.only_consumer(product.output[0], "Add")
    if product is None or total is None:
        return None
    gamma = state.vector_operand(product, normed, shape, 1)
    beta = state.vector_operand(total, product.output[0], shape, 1)
    if gamma is None or beta is None:
        return None
    state.done |= {product.output[0], total.output[0]}
    return gamma, beta, total.output[0]


def _silu_after(state: Lowering, value: str) -> str | None:
    """The name of x sigmoid(x) for a value x that nothing else reads; marks its nodes as done."""
    readers = state.consumers[value]
    product = next((reader for reader in readers if reader.op_type == "Mul"), None)
    if product is None or len(readers) != 2 or _silu_input(state, product) != value:
        return None
    sigmoid = next(reader for reader in readers if reader.op_type == "Sigmoid").output[0]
    if len(state.consumers[sigmoid]) != 1 or {value, sigmoid} & state.results:
        return None
    state.done |= {sigmoid, product.output[0]}
    return product.output[0]


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_ELEMENTARY, _unary),
    **dict.fromkeys(_BINARY, _binary),
    "Conv": _convolution,
    "MatMul": _product,
    "Gemm": _product,
    "MultiHeadAttention": _attention,
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
}
"""How each operator of this module is lowered."""
