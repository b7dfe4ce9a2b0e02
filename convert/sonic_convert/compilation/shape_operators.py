"""Lowers operators that only move values: to a change of layout where that is enough, otherwise to a copy."""

from __future__ import annotations

import numpy as np
import onnx
from tvm import relax

from sonic_convert.compilation.context import Handler, Lowering, attributes_of, lower_with_tvm_frontend
from sonic_convert.compilation.layout import CHANNELS_LAST, Layout
from sonic_convert.compilation.values import Tensor, Value


def as_tensor(value: Value) -> Tensor:
    """A value that is known to be a tensor."""
    assert isinstance(value, Tensor)
    return value


def with_rank(state: Lowering, value: Value, rank: int) -> Value:
    """A value with leading axes of size 1, as broadcasting adds them."""
    shape = (*[1] * (rank - len(value.shape)), *value.shape)
    if isinstance(value, Tensor):
        return state.emit.reshaped(value, shape)
    return state.array(value).reshape(shape)


def _transpose(state: Lowering, node: onnx.NodeProto) -> None:
    value = as_tensor(state.value(node, 0))
    permutation = attributes_of(node).get("perm", range(len(value.shape))[::-1])
    state.values[node.output[0]] = state.emit.transposed(value, permutation)


def _reshape(state: Lowering, node: onnx.NodeProto) -> None:
    value = as_tensor(state.value(node, 0))
    state.values[node.output[0]] = state.emit.reshaped(value, new_shape(state, node, value.shape))


def new_shape(state: Lowering, node: onnx.NodeProto, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape after a node that changes only the shape."""
    if node.op_type == "Flatten":
        axis = attributes_of(node).get("axis", 1)
        axis += len(shape) if axis < 0 else 0
        return (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
    if node.op_type == "Reshape":
        wanted = [int(size) for size in np.asarray(state.value(node, 1))]
        sizes = [shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
        known = int(np.prod([size for size in sizes if size != -1]))
        return tuple(int(np.prod(shape)) // known if size == -1 else size for size in sizes)
    axes = [int(axis) for axis in np.asarray(state.value(node, 1))] if len(node.input) > 1 else []
    if node.op_type == "Squeeze":
        removed = [axis % len(shape) for axis in axes] or [a for a, size in enumerate(shape) if size == 1]
        return tuple(size for axis, size in enumerate(shape) if axis not in removed)
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    sizes_left = iter(shape)
    return tuple(1 if axis in new else next(sizes_left) for axis in range(rank))


def _identity(state: Lowering, node: onnx.NodeProto) -> None:
    state.values[node.output[0]] = state.value(node, 0)


def _concat(state: Lowering, node: onnx.NodeProto) -> None:
    values = [state.values[name] for name in node.input]
    tensors = [value for value in values if isinstance(value, Tensor)]
    leader = max(tensors, key=lambda value: (np.prod(value.shape), not value.layout.is_plain))
    axis = attributes_of(node)["axis"] % len(leader.shape)
    order = leader.layout.order
    parts = [state.emit.ordered(value, order).expression for value in values]
    shape = list(leader.shape)
    shape[axis] = sum(value.shape[axis] for value in values)
    result = state.emit.emit(relax.op.concat(parts, order.index(axis)))
    state.values[node.output[0]] = Tensor(result, Layout(tuple(shape), order), leader.dtype)


def _split(state: Lowering, node: onnx.NodeProto) -> None:
    value = as_tensor(state.value(node, 0))
    axis = attributes_of(node).get("axis", 0) % len(value.shape)
    count = len(node.output)
    even = np.full(count, -(-value.shape[axis] // count))  # the last may be smaller
    sizes = np.asarray(state.value(node, 1)) if len(node.input) > 1 else even
    starts = np.minimum(np.concatenate([[0], np.cumsum(sizes)]), value.shape[axis])
    for name, begin, end in zip(node.output, starts[:-1], starts[1:], strict=True):
        state.values[name] = _sliced(state, value, {axis: (int(begin), int(end), 1)})


def _slice(state: Lowering, node: onnx.NodeProto) -> None:
    value = as_tensor(state.value(node, 0))
    parts = [np.asarray(state.values[name]) if name else None for name in node.input[1:]]
    starts, ends = parts[0], parts[1]
    assert starts is not None and ends is not None
    axes = parts[2] if len(parts) > 2 and parts[2] is not None else np.arange(len(starts))
    steps = parts[3] if len(parts) > 3 and parts[3] is not None else np.ones(len(starts), np.int64)
    if (steps < 1).any():
        lower_with_tvm_frontend(state, node)
        return
    ranges = {}
    for axis, begin, end, step in zip(axes, starts, ends, steps, strict=True):
        size = value.shape[axis]
        begin, end, _ = slice(int(begin), int(end), int(step)).indices(size)
        ranges[int(axis) % len(value.shape)] = (begin, end, int(step))
    state.values[node.output[0]] = _sliced(state, value, ranges)


def _sliced(state: Lowering, value: Tensor, ranges: dict[int, tuple[int, int, int]]) -> Tensor:
    axes = [value.layout.stored_axis(axis) for axis in ranges]
    begins, ends, steps = (list(column) for column in zip(*ranges.values(), strict=True))
    result = state.emit.emit(relax.op.strided_slice(value.expression, axes, begins, ends, steps))
    shape = list(value.shape)
    for axis, (begin, end, step) in ranges.items():
        shape[axis] = len(range(begin, end, step))
    return Tensor(result, Layout(tuple(shape), value.layout.order), value.dtype)


def _gather(state: Lowering, node: onnx.NodeProto) -> None:
    value, indices = state.value(node, 0), state.value(node, 1)
    if not isinstance(value, Tensor) or not isinstance(indices, np.ndarray) or indices.size != 1:
        lower_with_tvm_frontend(state, node)
        return
    axis = attributes_of(node).get("axis", 0) % len(value.shape)
    begin = int(indices.item()) % value.shape[axis]
    part = _sliced(state, value, {axis: (begin, begin + 1, 1)})
    shape = (*value.shape[:axis], *indices.shape, *value.shape[axis + 1 :])
    state.values[node.output[0]] = state.emit.reshaped(part, shape)


def _expand(state: Lowering, node: onnx.NodeProto) -> None:
    value = as_tensor(state.value(node, 0))
    shape = tuple(int(s) for s in np.broadcast_shapes(value.shape, tuple(np.asarray(state.value(node, 1)))))
    value = as_tensor(with_rank(state, value, len(shape)))
    layout = Layout(shape, value.layout.order)
    expression = value.expression
    if shape != value.shape:
        expression = state.emit.emit(relax.op.broadcast_to(expression, list(layout.stored_shape)))
    state.values[node.output[0]] = Tensor(expression, layout, value.dtype)


def _depth_to_space(state: Lowering, node: onnx.NodeProto) -> None:
    attributes = attributes_of(node)
    if attributes.get("mode", b"DCR") != b"DCR":
        lower_with_tvm_frontend(state, node)
        return
    value = state.emit.ordered(state.value(node, 0), CHANNELS_LAST)
    block = attributes["blocksize"]
    batch, deep, height, width = value.shape
    channels = deep // block**2
    stored = (batch, height, width, block, block, channels)
    expression = state.emit.reshape(value.expression, value.layout.stored_shape, stored)
    expression = state.emit.emit(relax.op.permute_dims(expression, [0, 1, 3, 2, 4, 5]))
    layout = Layout((batch, channels, height * block, width * block), CHANNELS_LAST)
    expression = state.emit.emit(relax.op.reshape(expression, list(layout.stored_shape)))
    state.values[node.output[0]] = Tensor(expression, layout)


HANDLERS: dict[str, Handler] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _reshape,
    "Squeeze": _reshape,
    "Flatten": _reshape,
    "Identity": _identity,
    "Dropout": _identity,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "DepthToSpace": _depth_to_space,
}
"""How each operator of this module is lowered."""
