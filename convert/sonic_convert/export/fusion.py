"""Rewrites a simplified graph for ONNX Runtime: to operators that use less memory, and all cores.

`com.microsoft.MultiHeadAttention` works block by block on the CPU, so its memory does not grow with
the square of the positions, as that of MatMul, Softmax and MatMul does. GELU, SiLU and the sum before a
GELU are fused by ONNX Runtime itself when it loads a graph; its SkipLayerNormalization was measured on
x86 and is slower than the additions and the normalization that it replaces.

Group normalisation is exported as InstanceNormalization, which ONNX Runtime computes in one thread;
LayerNormalization of the same rows computes the same, uses all threads, and loses fewer digits where a mean
is large compared with the standard deviation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from onnxscript.rewriter import RewriteRuleSet, pattern

_DOMAIN = "com.microsoft"


def fuse(model: ir.Model) -> int:
    """Fuse the attentions of `model` and rewrite its group norms, in place; returns how many attentions."""
    RewriteRuleSet(_NORMS).apply_to_model(model)
    _share_gains(model.graph)
    count = RewriteRuleSet(_ATTENTION).apply_to_model(model)
    if count:
        model.opset_imports.setdefault(_DOMAIN, 1)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    return count


def _attention(op: Any, q: Any, k: Any, v: Any, q_shape: Any, k_shape: Any, v_shape: Any, shape: Any,
               scale: Any = None) -> Any:  # fmt: skip
    """softmax(q s (k s)^T) v for heads that are split from the channels, as torch exports it."""
    query = op.Transpose(op.Reshape(q, q_shape), perm=[0, 2, 1, 3])
    key = op.Transpose(op.Reshape(k, k_shape), perm=[0, 2, 3, 1])
    if scale is not None:
        query, key = op.Mul(query, scale), op.Mul(key, scale)
    value = op.Transpose(op.Reshape(v, v_shape), perm=[0, 2, 1, 3])
    scores = op.Softmax(op.MatMul(query, key), axis=-1)
    return op.Reshape(op.Transpose(op.MatMul(scores, value), perm=[0, 2, 1, 3]), shape)


def _scaled(op: Any, q: Any, k: Any, v: Any, scale: Any, q_shape: Any, k_shape: Any, v_shape: Any,
            shape: Any) -> Any:  # fmt: skip
    return _attention(op, q, k, v, q_shape, k_shape, v_shape, shape, scale)


def _unscaled(op: Any, q: Any, k: Any, v: Any, q_shape: Any, k_shape: Any, v_shape: Any,
              shape: Any) -> Any:  # fmt: skip
    return _attention(op, q, k, v, q_shape, k_shape, v_shape, shape)


def _can_fuse(context: Any, q: ir.Value, q_shape: ir.Value, scale: ir.Value | None = None, **_: Any) -> bool:
    if scale is not None and ir.convenience.get_const_tensor(scale) is None:
        return False
    return _heads(q, q_shape) is not None


def _fused(op: Any, q: Any, k: Any, v: Any, q_shape: Any, k_shape: Any, v_shape: Any, shape: Any,
           scale: Any = None) -> Any:  # fmt: skip
    def sequence(x: ir.Value, heads_shape: ir.Value) -> Any:
        if _rank(x) == 3:
            return x
        # Two dimensions, with batch and positions merged: back to (batch, positions, channels).
        channels = op.Constant(value=ir.tensor(np.array([0, 0, -1], np.int64)))
        return op.Reshape(op.Reshape(x, heads_shape), channels)

    # Each side was multiplied by the root of the scale, or the query already by all of it.
    known = None if scale is None else ir.convenience.get_const_tensor(scale)
    root = 1.0 if known is None else float(known.numpy().item())
    attended = op.MultiHeadAttention(
        sequence(q, q_shape),
        sequence(k, k_shape),
        sequence(v, v_shape),
        num_heads=_heads(q, q_shape),
        scale=root**2,
        _domain=_DOMAIN,
    )
    # The reshape would change nothing where the result is (batch, positions, channels) again.
    same = _rank(q) == 3 and len(_entries(shape)) == 3
    return attended if same else op.Reshape(attended, shape)


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _heads(q: ir.Value, shape: ir.Value) -> int | None:
    """The third entry of a shape (batch, positions, heads, width), or None where it is unknown."""
    entries = _entries(shape)
    if len(entries) != 4 or entries[2] is None:
        return None
    if entries[2] > 0:
        return entries[2]
    channels = None if q.shape is None else q.shape[-1]
    if not isinstance(channels, int) or not entries[3]:
        return None
    return channels // entries[3]


def _entries(shape: ir.Value) -> list[int | None]:
    """A shape's entries, None where they are not constant; empty where even their number is unknown."""
    known = ir.convenience.get_const_tensor(shape)
    if known is not None:
        return [int(value) for value in known.numpy()]
    node = shape.producer()
    if node is None or node.op_type != "Concat":
        return []
    entries: list[int | None] = []
    for part in node.inputs:
        tensor = None if part is None else ir.convenience.get_const_tensor(part)
        entries += [None] if tensor is None else [int(value) for value in tensor.numpy().ravel()]
    return entries


def _rows_normed(op: Any, x: Any, ones: Any, zeros: Any, epsilon: Any) -> Any:
    return op.InstanceNormalization(x, ones, zeros, epsilon=epsilon)


def _has_no_affine(_context: Any, x: ir.Value, ones: ir.Value, zeros: ir.Value, **_: Any) -> bool:
    """Whether (batch, groups, values) are normalised without gains and offsets."""
    gain, offset = (ir.convenience.get_const_tensor(value) for value in (ones, zeros))
    if gain is None or offset is None or _rank(x) != 3:
        return False
    return bool((gain.numpy() == 1).all() and (offset.numpy() == 0).all())


def _layer_normed(op: Any, x: Any, epsilon: ir.Attr, **_: Any) -> Any:
    one = op.Constant(value=ir.tensor(np.array(1.0, np.float32)))
    return op.LayerNormalization(x, op.Expand(one, op.Shape(x, start=2)), axis=-1, epsilon=epsilon)


def _share_gains(graph: ir.Graph) -> None:
    """Share one gain of ones among all group norms between reshapes to the same shapes."""
    gains: dict[tuple[ir.Value | None, ir.Value | None], ir.Value | None] = {}
    for node in graph:
        if node.op_type != "LayerNormalization" or len(node.inputs) != 2:
            continue
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        readers = [usage.node for usage in node.outputs[0].uses()]
        if before is not None and [part.op_type for part in (before, *readers)] == ["Reshape", "Reshape"]:
            shapes = before.inputs[1], readers[0].inputs[1]
            node.replace_input_with(1, gains.setdefault(shapes, node.inputs[1]))


_NORMS = [pattern.RewriteRule(_rows_normed, _layer_normed, _has_no_affine)]
_ATTENTION = [pattern.RewriteRule(found, _fused, _can_fuse) for found in (_scaled, _unscaled)]
