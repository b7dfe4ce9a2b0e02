"""float16 weights on their way to float32."""

from __future__ import annotations

import onnx
from onnx import helper


def widen(half: str, widened: str, name: str) -> onnx.NodeProto:
    """A cast of a constant, which engines compute once, when they load it."""
    return helper.make_node("Cast", [half], [widened], name, to=onnx.TensorProto.FLOAT)


def widen_late(
    half: str, widened: str, name: str, activation: str, shape: str, zero: str
) -> list[onnx.NodeProto]:
    """Nodes that widen a weight when its layer runs, and not before.

    The weight has to be an input with a default value, so that it is no constant. Its shape is told by way of
    the layer's activation, whose computation the cast then waits for.

    Args:
        half, widened: tensors of the weight.
        name: of the nodes, as a prefix.
        activation: what the layer reads.
        shape, zero: constants, the weight's shape and one zero, int64.
    """
    sizes, none, shaped = f"{name}/sizes", f"{name}/none", f"{name}/half"
    return [
        helper.make_node("Shape", [activation], [sizes], f"{name}/Shape"),
        helper.make_node("Slice", [sizes, zero, zero], [none], f"{name}/Slice"),
        helper.make_node("Concat", [none, shape], [f"{name}/shape"], f"{name}/Concat", axis=0),
        helper.make_node("Reshape", [half, f"{name}/shape"], [shaped], f"{name}/Reshape"),
        widen(shaped, widened, f"{name}/Cast"),
    ]
