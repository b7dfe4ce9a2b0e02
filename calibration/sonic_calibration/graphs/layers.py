"""The layers of a graph that can be quantized: convolutions and matrix products with constant weights.

Example:

    for layer in find_layers(StoredGraph.open(path)):
        print(layer.name, layer.operator, layer.uses[0].activation)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx

from sonic_calibration.graphs.stored_graph import StoredGraph

_OPERATORS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Use:
    """One node that uses a layer's weight.

    Attributes:
        node: the node's name.
        activation: the tensor that it multiplies with the weight.
        output: the tensor that it computes.
    """

    node: str
    activation: str
    output: str


@dataclass(frozen=True)
class Layer:
    """A constant weight, and the nodes that use it.

    Attributes:
        name: derived from the weight's name, such as ``unet.down_blocks.0.resnets.0.space.conv1``; unique
            within the graph.
        operator: "Conv", "MatMul" or "Gemm".
        weight: the weight's initializer.
        bias: the initializer of the bias of a Conv or Gemm; None if there is none or it is computed.
        uses: the nodes that use the weight, at least one.
        shape: shape of the weight.
        output_axis: the weight's axis of output channels, each of which is quantized with its own scale.
        input_axis: the weight's axis of input channels.
        channel_axis: the activation's channel axis, counted from the end (negative).
    """

    name: str
    operator: str
    weight: str
    bias: str | None
    uses: tuple[Use, ...]
    shape: tuple[int, ...]
    output_axis: int
    input_axis: int
    channel_axis: int

    @property
    def parameters(self) -> int:
        """Number of elements of the weight."""
        return int(np.prod(self.shape))

    @property
    def stacked(self) -> bool:
        """Whether the weight is a stack of matrices, for which there are no integer kernels."""
        return self.operator == "MatMul" and len(self.shape) > 2


def find_layers(graph: StoredGraph) -> list[Layer]:
    """Every layer with a constant weight, in the order of the graph's nodes."""
    found: dict[tuple[object, ...], Layer] = {}
    names: dict[str, int] = {}
    for node in graph.model.graph.node:
        if node.op_type not in _OPERATORS or node.input[1] not in graph.initializers:
            continue
        weight, shape = node.input[1], graph.shape(node.input[1])
        axes = _axes(node, len(shape))
        if len(shape) < 2 or node.input[0] in graph.initializers or axes is None:
            continue
        use = Use(node.name, node.input[0], node.output[0])
        key = weight, node.op_type, axes, tuple(node.input[2:])
        if key in found:
            found[key] = replace(found[key], uses=(*found[key].uses, use))
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in graph.initializers else None
        name = _layer_name(weight, node.name)
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:  # one weight may be used by a Gemm and, transposed, by a MatMul
            name = f"{name}#{names[name]}"
        found[key] = Layer(name, node.op_type, weight, bias, (use,), shape, *axes)
    return list(found.values())


def _axes(node: onnx.NodeProto, rank: int) -> tuple[int, int, int] | None:
    """The weight's output and input axes and the activation's channel axis.

    None for a Gemm that transposes its activation.
    """
    if node.op_type == "Conv":
        return 0, 1, 1 - rank
    if node.op_type == "MatMul":
        return rank - 1, rank - 2, -1
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    if flags.get("transA"):
        return None
    return (0, 1, -1) if flags.get("transB") else (1, 0, -1)


def _layer_name(weight: str, node: str) -> str:
    """``conv_in`` for ``conv_in.weight``; a weight without a descriptive name is called after its node."""
    if weight.startswith("onnx::") or "." not in weight:
        parts = [part for part in node.split("/") if part]
        return ".".join(parts[:-1] or parts)
    return weight.removesuffix(".transposed").removesuffix(".weight")
