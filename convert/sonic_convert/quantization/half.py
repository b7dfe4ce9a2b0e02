"""float16 weights of layers that compute in float32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from sonic_calibration.graphs.layers import Layer, Use
from sonic_calibration.graphs.stored_graph import StoredGraph, WeightKeeper

#: A layer with at most this many parameters is always cast when the graph is loaded.
SMALL = 1 << 16
#: The share of all parameters that may take four bytes in memory for the sake of speed.
SHARE_AT_LOAD = 0.09
#: What a convolution gains at each position, relative to a matrix product (docs/notes/benchmarks-journal.md).
_CONVOLUTION_GAIN = 4


class HalfWeights:
    """The float16 layers of a graph that is being written.

    A constant weight is cast to float32 once, when the graph is loaded; one that is not constant, whenever
    its layer runs. Constants are faster, as ONNX Runtime packs the matrices of products in advance and has
    blocked kernels for convolutions, but take four bytes. A layer gains at every position that it is applied
    to, so the layers with the most positions have constant weights.

    Args:
        graph: the graph with full precision.
        writer: takes the weights.
        layers: those with float16 weights and float32 arithmetic.
        sizes: of the graph's dynamic axes in a typical call, from which the positions are counted.

    Attributes:
        cast_in_calls: names of the layers whose weights are cast whenever they run.
    """

    def __init__(
        self, graph: StoredGraph, writer: WeightKeeper, layers: Iterable[Layer], sizes: Mapping[str, int]
    ) -> None:
        self._writer = writer
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._results: dict[str, list[int | None]] = {}
        layers = [layer for layer in layers if layer.parameters > SMALL]
        left = SHARE_AT_LOAD * sum(layer.parameters for layer in layers)
        self.cast_in_calls: set[str] = set()
        self._shapes = tensor_shapes(graph, sizes) if layers else {}
        for layer in sorted(layers, key=self._gain, reverse=True):
            if layer.parameters <= left:
                left -= layer.parameters
            else:
                self.cast_in_calls.add(layer.name)

    def _gain(self, layer: Layer) -> int:
        """The time that a constant weight saves, for each of its parameters."""
        outputs = sum(math.prod(self._shapes.get(use.output, (0,))) for use in layer.uses)
        positions = outputs // layer.shape[layer.output_axis]
        return positions * (_CONVOLUTION_GAIN if layer.operator == "Conv" else 1)

    def cast(self, layer: Layer, use: Use, half: str, single: str) -> list[onnx.NodeProto]:
        """Nodes that cast the weight for one use of a layer.

        Args:
            half, single: names of the float16 and the float32 tensor.
        """
        if layer.name not in self.cast_in_calls:
            return [_cast(half, single, f"{use.node}/Cast")]
        self._inputs[half] = layer.shape
        if rank := len(self._shapes.get(use.output, ())):
            axes: list[int | None] = [None] * rank
            axes[layer.channel_axis] = layer.shape[layer.output_axis]
            self._results[use.output] = axes
        shape = self._writer.add(f"{layer.weight}.shape", np.array(layer.shape, np.int64))
        zero = self._writer.add("zero", np.zeros(1, np.int64))
        # A cast that depends on nothing but the weight would run long before its layer: here the weight's
        # shape is derived from the layer's activation, so that the cast waits for the activation.
        name = f"{use.node}/widen"
        sizes, none, shaped = f"{name}/sizes", f"{name}/none", f"{name}/half"
        return [
            helper.make_node("Shape", [use.activation], [sizes], f"{name}/Shape"),
            helper.make_node("Slice", [sizes, zero, zero], [none], f"{name}/Slice"),
            helper.make_node("Concat", [none, shape], [f"{name}/shape"], f"{name}/Concat", axis=0),
            helper.make_node("Reshape", [half, f"{name}/shape"], [shaped], f"{name}/Reshape"),
            _cast(shaped, single, f"{name}/Cast"),
        ]

    def declare(self, model: onnx.ModelProto) -> None:
        """Make inputs with default values of the weights that are not constant, and declare the channels of
        their layers' results.

        Engines fuse what follows a layer only where they know its channels. The shapes of the cast weights
        are not declared: ONNX Runtime would keep a weight's memory for the next one of the same shape.
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
    """The shapes of a graph's tensors for given sizes of its dynamic axes, where they can be inferred.

    External weights are not read.
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


def _cast(half: str, single: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [half], [single], name, to=onnx.TensorProto.FLOAT)
