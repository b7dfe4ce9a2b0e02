"""float16 weights on their way to float32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from sonic_calibration.graphs.layers import Layer, Use
from sonic_calibration.graphs.stored_graph import StoredGraph, WeightKeeper

#: Parameters of a layer that is not worth nodes of its own.
SMALL = 1 << 16
#: Of all parameters, so many may take four bytes in memory for the sake of speed.
SHARE_AT_LOAD = 0.09
#: What a convolution gains at a position, in gains of a product (docs/benchmarks.md).
_CONVOLUTION_GAIN = 4


class HalfWeights:
    """The float16 layers of a graph that is written.

    A constant is widened once, when the graph is loaded; a weight that is no constant, whenever its layer
    runs. Constants are faster, as ONNX Runtime packs the matrices of products in advance and has blocked
    kernels for convolutions, but take four bytes. A layer gains in every position that it is applied to, so
    that those with the most positions are constants.

    Args:
        graph: the graph with full precision.
        writer: takes the weights.
        layers: those whose weights are float16 and whose arithmetic is not.
        sizes: of the graph's dynamic axes in some call, from which the positions are counted.

    Attributes:
        late: names of the layers that are widened when they run.
    """

    def __init__(
        self, graph: StoredGraph, writer: WeightKeeper, layers: Iterable[Layer], sizes: Mapping[str, int]
    ) -> None:
        self._writer = writer
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._results: dict[str, list[int | None]] = {}
        layers = [layer for layer in layers if layer.parameters > SMALL]
        left = SHARE_AT_LOAD * sum(layer.parameters for layer in layers)
        self.late: set[str] = set()
        self._shapes = tensor_shapes(graph, sizes) if layers else {}
        for layer in sorted(layers, key=self._gain, reverse=True):
            if layer.parameters <= left:
                left -= layer.parameters
            else:
                self.late.add(layer.name)

    def _gain(self, layer: Layer) -> int:
        """What a constant weight gains, for each of its parameters."""
        outputs = sum(math.prod(self._shapes.get(use.output, (0,))) for use in layer.uses)
        positions = outputs // layer.shape[layer.output_axis]
        return positions * (_CONVOLUTION_GAIN if layer.operator == "Conv" else 1)

    def widen(self, layer: Layer, use: Use, half: str, widened: str) -> list[onnx.NodeProto]:
        """Nodes that make the weight of one use of a layer.

        Args:
            half, widened: the tensors.
        """
        if layer.name not in self.late:
            return [_cast(half, widened, f"{use.node}/Cast")]
        self._inputs[half] = layer.shape
        if rank := len(self._shapes.get(use.output, ())):
            axes: list[int | None] = [None] * rank
            axes[layer.channel_axis] = layer.shape[layer.output_axis]
            self._results[use.output] = axes
        shape = self._writer.add(f"{layer.weight}.shape", np.array(layer.shape, np.int64))
        zero = self._writer.add("zero", np.zeros(1, np.int64))
        # A cast of nothing but a weight would run long before its layer: here the weight's shape is told by
        # way of the layer's activation, for whose computation it then waits.
        name = f"{use.node}/widen"
        sizes, none, shaped = f"{name}/sizes", f"{name}/none", f"{name}/half"
        return [
            helper.make_node("Shape", [use.activation], [sizes], f"{name}/Shape"),
            helper.make_node("Slice", [sizes, zero, zero], [none], f"{name}/Slice"),
            helper.make_node("Concat", [none, shape], [f"{name}/shape"], f"{name}/Concat", axis=0),
            helper.make_node("Reshape", [half, f"{name}/shape"], [shaped], f"{name}/Reshape"),
            _cast(shaped, widened, f"{name}/Cast"),
        ]

    def declare(self, model: onnx.ModelProto) -> None:
        """Make inputs with default values of the weights that are no constants; tell their results' channels.

        Engines fuse what follows a layer only where they know them. They are not told the weights' own
        shapes: ONNX Runtime would keep a widened weight's memory for the next one of the same shape.
        """
        half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        inputs = self._inputs.items()
        model.graph.input.extend(helper.make_tensor_value_info(name, half, shape) for name, shape in inputs)
        outputs = {output.name for output in model.graph.output}
        known = [(name, axes) for name, axes in self._results.items() if name not in outputs]
        model.graph.value_info.extend(
            helper.make_tensor_value_info(name, single, axes) for name, axes in known
        )


def tensor_shapes(graph: StoredGraph, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of a graph's tensors for sizes of its dynamic axes, where they can be inferred.

    Weights beside the graph are not read.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for value in model.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]
    inline = [tensor for tensor in model.graph.initializer if not tensor.external_data]
    for tensor in model.graph.initializer:
        if tensor.external_data:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    del model.graph.initializer[:]
    model.graph.initializer.extend(inline)
    inferred = SymbolicShapeInference.infer_shapes(model, auto_merge=True)
    dimensions = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    return {name: tuple(shape) for name, shape in dimensions.items() if all(shape)}


def _cast(half: str, widened: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [half], [widened], name, to=onnx.TensorProto.FLOAT)
