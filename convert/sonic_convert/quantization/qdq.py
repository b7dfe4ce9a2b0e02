"""Writes a graph whose layers have smaller weights, or eight-bit arithmetic.

Integers are expressed by QuantizeLinear and DequantizeLinear around the layers (QDQ), the form that ONNX
Runtime, OpenVINO and TensorRT turn into their integer kernels. Matrix products keep their outputs in float32;
convolutions quantize theirs too, without which no engine would use its integer kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from sonic.errors import InputError
from sonic_calibration.graphs.layers import Layer, Use, find_layers
from sonic_calibration.graphs.stored_graph import (
    StoredGraph,
    WeightKeeper,
    WeightWriter,
    open_with_external_weights,
    replace_graph,
)
from sonic_calibration.ranges.statistics import METHODS, TensorStatistics, choose_range
from sonic_convert.quantization.arithmetic import Affine, IntegerWeight, affine, quantize_weight
from sonic_convert.quantization.half import HalfWeights
from sonic_convert.quantization.smoothing import find_groups, smooth
from sonic_convert.quantization.topology import Topology

ISAS = ("x86", "aarch64")


@dataclass(frozen=True)
class QdqOptions:
    """How ranges become integers.

    Attributes:
        isa: "x86" has uint8 activations, "aarch64" int8, which the kernels there need.
        method: one of `sonic_calibration.ranges.statistics.METHODS`.
        smooth: search SmoothQuant's strength for every group of linear layers.
        correct_bias: correct the biases for the mean error of quantized weights.
        symmetric: activations with zero point 0 (128 of uint8).
        per_channel: a scale for every output channel of a weight.

    Raises:
        InputError: an option has an unknown value.
    """

    isa: str = "x86"
    method: str = "mse"
    smooth: bool = True
    correct_bias: bool = True
    symmetric: bool = False
    per_channel: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (("isa", self.isa, ISAS), ("method", self.method, METHODS)):
            if value not in known:
                raise InputError(f"{name} is {value!r}, but should be one of {', '.join(known)}")

    @property
    def signed(self) -> bool:
        """Whether activations are int8."""
        return self.isa == "aarch64"


DEFAULTS = QdqOptions()
_HALF_LIMIT = float(np.finfo(np.float16).max)
_BIAS_LIMIT = 2.0**30  # half of int32's range; the other half is for the sum of the products
_MARGIN = 4  # other clips may have larger values than the calibration's


def quantize_graph(
    source: Path,
    target: Path,
    precisions: Mapping[str, str],
    statistics: Mapping[str, TensorStatistics],
    options: QdqOptions = DEFAULTS,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Write a graph with other precisions.

    Args:
        source: the full-precision graph.
        target: the graph to write; its weights are external where the source's are.
        precisions: of the layers, by name; fp32 for those that are left out.
        statistics: of the tensors of layers with "int8".
        options: how.
        sizes: of the graph's dynamic axes in a typical call, which determine the layers whose float16 weights
            are cast when the graph is loaded.

    Returns:
        Facts for the manifest: layers and parameters by precision, and how many groups were smoothed.

    Raises:
        InputError: a tensor's statistics are missing.
    """
    graph = StoredGraph.open(source)
    external = source.with_name(f"{source.name}.data").exists()
    with WeightWriter(target, external) as writer:
        rewriter = _Rewriter(graph, writer, precisions, statistics, options, sizes or {})
        model = rewriter.model()
    onnx.save(model, str(target))
    return rewriter.facts()


def open_quantized(
    graph: StoredGraph,
    precisions: Mapping[str, str],
    statistics: Mapping[str, TensorStatistics],
    options: QdqOptions = DEFAULTS,
) -> onnxruntime.InferenceSession:
    """The graph of `quantize_graph` as a session, without writing it: only new weights are in memory."""
    model = _Rewriter(graph, WeightKeeper(), precisions, statistics, options, {}).model()
    return open_with_external_weights(model, graph.path.parent)


class _Rewriter:
    """One pass over a graph's nodes."""

    def __init__(
        self,
        graph: StoredGraph,
        writer: WeightKeeper,
        precisions: Mapping[str, str],
        statistics: Mapping[str, TensorStatistics],
        options: QdqOptions,
        sizes: Mapping[str, int],
    ) -> None:
        self._graph, self._writer = graph, writer
        self._statistics, self._options = statistics, options
        self._topology = Topology(graph)
        layers = find_layers(graph)
        self._precision = {layer.name: self._supported_precision(layer, precisions) for layer in layers}
        self._layers = layers
        self._by_node = {use.node: (layer, use) for layer in layers for use in layer.uses}
        self._edits: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._factors: dict[str, np.ndarray] = {}
        self._ranges: dict[str, Affine] = {}
        self._quantized: set[str] = set()
        self._smoothed = 0
        self._corrections: dict[str, np.ndarray] = {}
        halves = [layer for layer in layers if self._precision[layer.name] == "fp16"]
        self._halves = HalfWeights(graph, writer, halves, sizes)
        # In ONNX Runtime, a row of pictures makes convolutions faster with constant weights only.
        in_calls = [layer for layer in halves if layer.name in self._halves.cast_in_calls]
        self._rows = self._topology.picture_rows(use.node for layer in in_calls for use in layer.uses)
        if options.smooth:
            self._smooth([layer for layer in layers if self._precision[layer.name] == "int8"])

    def _supported_precision(self, layer: Layer, precisions: Mapping[str, str]) -> str:
        """A layer's precision, or the next best one where the layer does not support it.

        Stacks of matrices have no integer kernels, so that only their weights are quantized. The weights and,
        where the arithmetic is float16 too, all values in the calibration have to fit into float16.
        """
        precision = precisions.get(layer.name, "fp32")
        if precision == "int8" and layer.stacked:
            return "weights8"
        if precision == "fp16-native":
            tensors = [name for use in layer.uses for name in (use.activation, use.output)]
            largest = max(max(-seen.minimum, seen.maximum) for seen in map(self._seen, tensors))
            precision = "fp16-native" if largest < _HALF_LIMIT / _MARGIN else "fp16"
        if precision.startswith("fp16") and np.abs(self._graph.load(layer.weight)).max() > _HALF_LIMIT:
            return "fp32"
        return precision

    def facts(self) -> dict[str, Any]:
        """What was done, for the manifest."""
        counts: dict[str, int] = {}
        parameters: dict[str, int] = {}
        for layer in self._layers:
            precision = self._precision[layer.name]
            counts[precision] = counts.get(precision, 0) + 1
            parameters[precision] = parameters.get(precision, 0) + layer.parameters
        return {"layers": counts, "parameters": parameters, "smoothed_groups": self._smoothed}

    def model(self) -> onnx.ModelProto:
        """The new graph; its weights are in the writer."""
        nodes = self._nodes()
        model = replace_graph(self._graph.model, nodes, self._writer.tensors.values())
        self._halves.declare(model)
        return model

    def _nodes(self) -> list[onnx.NodeProto]:
        nodes: list[onnx.NodeProto] = []
        if self._options.correct_bias:
            for layer in self._layers:
                if self._precision[layer.name] == "int8":
                    self._correct(layer)
        dropped = {name for row in self._rows.values() for name in row.nodes}
        for node in self._graph.model.graph.node:
            known = self._by_node.get(node.name)
            if node.name in dropped:
                continue
            if known is None or self._precision[known[0].name] == "fp32":
                nodes.append(node)
            else:
                nodes += self._layer(node, *known)
        for name in dict.fromkeys(name for node in nodes for name in node.input):
            if name in self._edits or name in self._corrections:
                self._writer.add(name, self._load(name))
            elif name in self._graph.initializers:
                self._writer.keep(self._graph, name)
        return nodes

    def _layer(self, node: onnx.NodeProto, layer: Layer, use: Use) -> list[onnx.NodeProto]:
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        dequantized = f"{use.node}/weight"
        precision = self._precision[layer.name]
        changed.input[1] = dequantized
        row = self._rows.get(node.name)
        if row is not None:
            changed.input[0], changed.output[0] = row.pictures, row.result
            use = replace(use, activation=row.pictures, output=row.result)
        if precision == "fp16":
            return [*self._halves.cast(layer, use, self._half(layer.weight), dequantized), changed]
        if precision == "fp16-native":
            return self._compute_in_half(changed, layer, use)
        weight = self._weight(layer)
        nodes = [self._dequantize(f"{layer.weight}.int8", weight.values, weight, dequantized)]
        if precision == "weights8":
            return [*nodes, changed]
        affine = self._range(use.activation)
        nodes += self._quantize_once(use.activation, affine)
        changed.input[0] = f"{use.node}/input"
        nodes.append(self._from_integers(use.activation, changed.input[0]))
        if layer.bias is not None:
            scales = np.asarray(weight.scales * affine.scale, np.float32)
            integers = np.rint(self._load(layer.bias) / scales).astype(np.int32)
            bias = IntegerWeight(integers, scales, 0)  # type: ignore[arg-type]
            changed.input[2] = f"{use.node}/bias"
            nodes.append(self._dequantize(f"{use.node}/bias.int32", integers, bias, changed.input[2]))
        nodes.append(changed)
        if layer.operator == "Conv":
            raw = changed.output[0] = f"{use.node}/result"
            nodes += self._quantize_once(use.output, self._range(use.output), raw)
            nodes.append(self._from_integers(use.output, use.output))
        return nodes

    def _half(self, name: str) -> str:
        return self._writer.add(f"{name}.half", self._load(name).astype(np.float16))

    def _compute_in_half(self, node: onnx.NodeProto, layer: Layer, use: Use) -> list[onnx.NodeProto]:
        """The layer in float16, between two casts."""
        half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        name = use.node
        node.input[0], node.output[0] = f"{name}/half_input", f"{name}/half_output"
        node.input[1] = self._half(layer.weight)
        if layer.bias is not None:
            node.input[2] = self._half(layer.bias)
        return [
            helper.make_node("Cast", [use.activation], [node.input[0]], f"{name}/to_half", to=half),
            node,
            helper.make_node("Cast", [node.output[0]], [use.output], f"{name}/to_single", to=single),
        ]

    def _quantize_once(self, tensor: str, affine: Affine, source: str | None = None) -> list[onnx.NodeProto]:
        if tensor in self._quantized:
            return []
        self._quantized.add(tensor)
        scale = self._writer.add(f"{tensor}.scale", np.asarray(affine.scale))
        zero = self._writer.add(f"{tensor}.zero_point", affine.zero_point)
        inputs = [source or tensor, scale, zero]
        return [
            helper.make_node("QuantizeLinear", inputs, [f"{tensor}.quantized"], f"{tensor}/QuantizeLinear")
        ]

    def _from_integers(self, tensor: str, name: str) -> onnx.NodeProto:
        inputs = [f"{tensor}.quantized", f"{tensor}.scale", f"{tensor}.zero_point"]
        return helper.make_node("DequantizeLinear", inputs, [name], f"{name}/DequantizeLinear")

    def _dequantize(
        self, name: str, values: np.ndarray, weight: IntegerWeight, output: str
    ) -> onnx.NodeProto:
        inputs = [
            self._writer.add(name, values),
            self._writer.add(f"{name}.scales", weight.scales),
            self._writer.add(f"{name}.zero_points", np.zeros(weight.scales.shape, values.dtype)),
        ]
        node = helper.make_node("DequantizeLinear", inputs, [output], f"{output}/DequantizeLinear")
        if weight.scales.ndim:
            node.attribute.append(helper.make_attribute("axis", weight.axis))
        return node

    def _load(self, name: str) -> np.ndarray:
        """A constant with smoothing and corrections, as it is written."""
        array = self._graph.load(name)
        for axis, factors in self._edits.get(name, ()):
            shape = [1] * array.ndim
            shape[axis] = -1
            array = array * factors.reshape(shape)
        if name in self._corrections:
            array = array + self._corrections[name]
        return array.astype(np.float32) if array.dtype == np.float64 else array

    def _weight(self, layer: Layer) -> IntegerWeight:
        """A layer's weight in eight bits.

        The bias is in units of the weight's scale times the activation's. Where both are tiny, for an output
        with tiny weights, the weight's scale is enlarged until the bias fits into 32 bits.
        """
        smallest = None
        if layer.bias is not None and self._precision[layer.name] == "int8":
            step = min(float(self._range(use.activation).scale) for use in layer.uses)
            smallest = np.abs(self._load(layer.bias)) / (step * _BIAS_LIMIT)
        per_channel = self._options.per_channel
        return quantize_weight(self._load(layer.weight), layer.output_axis, per_channel, smallest)

    def _seen(self, tensor: str) -> TensorStatistics:
        if tensor not in self._statistics:
            raise InputError(
                f"the calibration says nothing of '{tensor}' of {self._graph.path}; calibrate this bundle "
                "with 'sonic-convert calibrate'"
            )
        return self._statistics[tensor]

    def _range(self, tensor: str) -> Affine:
        if tensor not in self._ranges:
            factors = self._factors.get(tensor)
            if factors is None:
                self._ranges[tensor] = self._range_as_seen(tensor)
            else:
                seen = self._seen(tensor)
                low = min(float((seen.channel_minimum / factors).min()), 0.0)
                high = max(float((seen.channel_maximum / factors).max()), 0.0)
                self._ranges[tensor] = affine(low, high, self._options.signed, self._options.symmetric)
        return self._ranges[tensor]

    def _range_as_seen(self, tensor: str) -> Affine:
        """Without smoothing."""
        options = self._options
        ends = choose_range(self._seen(tensor), options.method)
        return affine(*ends, options.signed, options.symmetric)

    def _smooth(self, layers: list[Layer]) -> None:
        options = self._options
        for group in find_groups(self._topology, layers):
            for tensor in group.tensors:
                self._seen(tensor)
            found = smooth(
                group, self._statistics, self._load, self._range_as_seen, options.signed,
                options.symmetric, options.per_channel,
            )  # fmt: skip
            if found is None:
                continue
            self._smoothed += 1
            for tensor in group.tensors:
                self._factors[tensor] = found.factors
            for name, axis in group.sources:
                self._edits.setdefault(name, []).append((axis, 1 / found.factors))
            for layer in group.layers:
                self._edits.setdefault(layer.weight, []).append((layer.input_axis, found.factors))

    def _correct(self, layer: Layer) -> None:
        """Add the mean error that the quantized weights cause to the layer's bias.

        A convolution's borders are treated as its interior, and the activations' rounding as unbiased.
        """
        biases = {layer.bias or self._topology.added_bias(use.output) for use in layer.uses}
        bias = biases.pop()
        # A bias that other layers read too cannot make up for the errors of all of them.
        if biases or bias is None or len(self._topology.consumers[bias]) != len(layer.uses):
            return
        exact = self._load(layer.weight)
        wrong = exact - self._weight(layer).floats
        means = [self._seen(use.activation).channel_mean for use in layer.uses]
        mean = np.mean(means, axis=0)
        factors = self._factors.get(layer.uses[0].activation)
        mean = mean if factors is None else mean / factors
        matrix = np.moveaxis(wrong, (layer.input_axis, layer.output_axis), (0, 1))
        if matrix.ndim > 2:
            matrix = matrix.sum(axis=tuple(range(2, matrix.ndim)))
        if matrix.shape[0] != len(mean):  # a grouped convolution
            return
        self._corrections[bias] = (mean @ matrix).astype(np.float32)
