"""The layers of a graph that can be quantized: its convolutions and its products with constant weights.

for layer in find_layers(StoredGraph.open(path)):
    print(layer.name, layer.operator, layer.uses[0].activation)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sonic_calibration.graphs.stored_graph import StoredGraph

_OPERATORS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Use:
    """One node that uses a layer's weights: its name, the tensor that it reads and the one it makes."""

    node: str
    activation: str
    output: str


@dataclass(frozen=True)
class Layer:
    """Weights, and the nodes that use them.

    Attributes:
        name: from its weights' name, ``unet.down_blocks.0.resnets.0.space.conv1``; unique in its graph.
        operator: "Conv", "MatMul" or "Gemm".
        weight: the initializer's name.
        bias: that of a Conv's or Gemm's constant bias, or None.
        uses: at least one.
        shape: of the weight.
        output_axis: the weight's axis of outputs; each output has a scale of its own.
        input_axis: the weight's axis of inputs.
        channel_axis: the activation's axis of channels, from the end.
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
        """Numbers in the weight."""
        return int(np.prod(self.shape))

    @property
    def stacked(self) -> bool:
        """Whether the weight is a stack of matrices, for which there are no integer kernels."""
        return self.operator == "MatMul" and len(self.shape) > 2


def find_layers(graph: StoredGraph) -> list[Layer]:
    """Every layer with constant weights, in the graph's order."""
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
        if names[name] > 1:  # one weight as Gemm and, transposed, as MatMul
            name = f"{name}#{names[name]}"
        found[key] = Layer(name, node.op_type, weight, bias, (use,), shape, *axes)
    return list(found.values())


def _axes(node, rank: int) -> tuple[int, int, int] | None:  # type: ignore[no-untyped-def]
    """Axes of outputs and inputs in the weight, and of channels in the activation."""
    if node.op_type == "Conv":
        return 0, 1, 1 - rank
    if node.op_type == "MatMul":
        return rank - 1, rank - 2, -1
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    if flags.get("transA"):
        return None
    return (0, 1, -1) if flags.get("transB") else (1, 0, -1)


def _layer_name(weight: str, node: str) -> str:
    """``conv_in`` from ``conv_in.weight``; weights that have no name of their own go by their node's."""
    if weight.startswith("onnx::") or "." not in weight:
        parts = [part for part in node.split("/") if part]
        return ".".join(parts[:-1] or parts)
    return weight.removesuffix(".transposed").removesuffix(".weight")
