"""What engines require of a quantized graph, and a check that a graph fulfils it.

Graphs of the profile "onnxruntime" run in ONNX Runtime and in OpenVINO. "tensorrt" and "timvx" are only
checked against the rules here; nothing was run on a GPU or an NPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sonic.errors import InputError
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_convert.quantization.topology import Topology

Rule = Callable[[StoredGraph, Topology], str | None]


def weights_are_symmetric(graph: StoredGraph, topology: Topology) -> str | None:
    """All weights are int8 around zero."""
    for node, weight in _weights(graph):
        if graph.initializers[weight].data_type not in (onnx.TensorProto.INT8, onnx.TensorProto.INT32):
            return f"the weight '{weight}' is no int8"
        if np.any(graph.load(node.input[2])):
            return f"the weight '{weight}' has a zero point"
    return None


def activations_are_symmetric(graph: StoredGraph, topology: Topology) -> str | None:
    """All activations are int8 around zero, with one scale."""
    for node in graph.model.graph.node:
        if node.op_type == "QuantizeLinear":
            if graph.initializers[node.input[2]].data_type != onnx.TensorProto.INT8:
                return f"'{node.input[0]}' is not rounded to int8"
            if np.any(graph.load(node.input[2])):
                return f"'{node.input[0]}' has a zero point"
            if graph.shape(node.input[1]):
                return f"'{node.input[0]}' has several scales"
    return None


def weights_have_one_scale(graph: StoredGraph, topology: Topology) -> str | None:
    """All weights have one scale, not one for each output channel."""
    for node, weight in _weights(graph):
        if graph.initializers[weight].data_type == onnx.TensorProto.INT8 and graph.shape(node.input[1]):
            return f"the weight '{weight}' has several scales"
    return None


def scales_are_positive(graph: StoredGraph, topology: Topology) -> str | None:
    """No scale is zero, negative or not finite."""
    for node in graph.model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = graph.load(node.input[1])
            if not (np.isfinite(scale).all() and (scale > 0).all()):
                return f"the scale '{node.input[1]}' is not positive"
    return None


def integers_come_in_pairs(graph: StoredGraph, topology: Topology) -> str | None:
    """Every quantized tensor is dequantized before anything else reads it."""
    for node in graph.model.graph.node:
        if node.op_type == "QuantizeLinear":
            for reader in topology.consumers[node.output[0]]:
                if reader.op_type != "DequantizeLinear" or list(reader.input[1:]) != list(node.input[1:]):
                    return f"'{node.output[0]}' is read by '{reader.name}' ({reader.op_type})"
    return None


def _weights(graph: StoredGraph) -> list[tuple[onnx.NodeProto, str]]:
    return [
        (node, node.input[0])
        for node in graph.model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.initializers
    ]


_COMMON: tuple[Rule, ...] = (weights_are_symmetric, scales_are_positive, integers_come_in_pairs)


@dataclass(frozen=True)
class Profile:
    """An engine's requirements.

    Attributes:
        rules: each returns what is wrong, or None.
        options: fields of `QdqOptions` with which graphs fulfil them.
    """

    rules: tuple[Rule, ...]
    options: dict[str, Any] = field(default_factory=dict)


PROFILES = {
    "onnxruntime": Profile(_COMMON),
    # TensorRT: "Working with quantized types", explicit quantization has no zero points.
    "tensorrt": Profile(
        (*_COMMON, activations_are_symmetric), {"isa": "aarch64", "symmetric": True, "per_channel": True}
    ),
    # NPUs behind TIM-VX take symmetric int8 with one scale for a tensor everywhere.
    "timvx": Profile(
        (*_COMMON, activations_are_symmetric, weights_have_one_scale),
        {"isa": "aarch64", "symmetric": True, "per_channel": False},
    ),
}


def check_profile(path: Path, profile: str) -> None:
    """Check a graph against a profile's rules.

    Raises:
        InputError: a rule is broken; the message names it.
    """
    graph = StoredGraph.open(path)
    topology = Topology(graph)
    for rule in PROFILES[profile].rules:
        wrong = rule(graph, topology)
        if wrong is not None:
            meaning = (rule.__doc__ or rule.__name__).rstrip(".")
            raise InputError(f"{path} does not fit the profile '{profile}' ({meaning}): {wrong}")
