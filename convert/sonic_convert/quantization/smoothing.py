"""SmoothQuant: moves outliers of activations into the weights that are multiplied with them.

Of ``x W``, channel j of x is divided by s_j and row j of W multiplied by it, with
``s_j = max|x_j|^a / max|W_j|^(1 - a)`` (Xiao et al., "SmoothQuant", ICML 2023, equation 4). The division
costs nothing, as it is folded into the weights that x comes from: a layer norm's gain and offset, or the
columns of a linear map. The strength a is searched for every group of layers that read the same x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonic_calibration.graphs.layers import Layer
from sonic_calibration.ranges.statistics import TensorStatistics
from sonic_convert.quantization.arithmetic import Affine, affine, quantize_weight
from sonic_convert.quantization.topology import Topology

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_WORTHWHILE = 0.99  # of the error without smoothing: a smaller improvement is not worth it
_LIMITS = (1e-4, 1e4)

RangeOf = Callable[[str], Affine]


@dataclass(frozen=True)
class Group:
    """Layers that read the same tensors, and the constants that these can be scaled through.

    Attributes:
        layers: MatMul or Gemm.
        tensors: what they read.
        sources: constants and their channel axes; dividing the constants divides the tensors.
    """

    layers: tuple[Layer, ...]
    tensors: tuple[str, ...]
    sources: frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Smoothing:
    """A group's factors s, (channels,), and the strength that they result from."""

    group: Group
    strength: float
    factors: NDArray[np.float32]


def find_groups(topology: Topology, layers: Sequence[Layer]) -> list[Group]:
    """The groups of linear layers whose inputs can be scaled at no cost."""
    groups = []
    for members in _components([layer for layer in layers if layer.operator in ("MatMul", "Gemm")]):
        nodes = {use.node for layer in members for use in layer.uses}
        weights = {layer.weight for layer in members}
        shared = len(weights) < len(members) or any(
            node.name not in nodes for weight in weights for node in topology.consumers[weight]
        )
        tensors = tuple(dict.fromkeys(use.activation for layer in members for use in layer.uses))
        read_elsewhere = any(
            tensor in topology.outputs or any(node.name not in nodes for node in topology.consumers[tensor])
            for tensor in tensors
        )
        found = [None if shared or read_elsewhere else _sources(topology, tensor) for tensor in tensors]
        sources: set[tuple[str, int]] = set()
        visited: set[str] = set()
        for one in found:
            if one is not None:
                sources |= one[0]
                visited |= one[1]
        whole = all(one is not None for one in found) and all(
            node.name in visited for name, _ in sources for node in topology.consumers[name]
        )
        if whole:
            groups.append(Group(tuple(members), tensors, frozenset(sources)))
    return groups


def _components(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers that are connected by the tensors that they read."""
    components: list[tuple[set[str], list[Layer]]] = []
    for layer in layers:
        tensors, members = {use.activation for use in layer.uses}, [layer]
        rest = []
        for other_tensors, other in components:
            if tensors & other_tensors:
                tensors |= other_tensors
                members = other + members
            else:
                rest.append((other_tensors, other))
        components = [*rest, (tensors, members)]
    return [members for _, members in components]


def _sources(topology: Topology, tensor: str) -> tuple[set[tuple[str, int]], set[str]] | None:
    """Constants that scale a tensor's channels, and the nodes on the way to it; None if there are none."""
    node = topology.producers.get(tensor)
    if node is None:
        return None
    constants = topology.graph.initializers

    def through(name: str) -> tuple[set[tuple[str, int]], set[str]] | None:
        return _sources(topology, name) if topology.only_reader(name) is not None else None

    found: tuple[set[tuple[str, int]], set[str]] | None = None
    if node.op_type == "LayerNormalization" and all(map(topology.is_vector, node.input[1:])):
        found = {(name, 0) for name in node.input[1:]}, set()
    elif node.op_type == "MatMul" and node.input[1] in constants:
        if len(topology.graph.shape(node.input[1])) == 2:
            found = {(node.input[1], 1)}, set()
    elif node.op_type == "Add":
        vectors = [name for name in node.input if topology.is_vector(name)]
        values = [name for name in node.input if name not in constants]
        before = through(values[0]) if len(vectors) == len(values) == 1 else None
        found = None if before is None else ({*before[0], (vectors[0], 0)}, before[1])
    elif node.op_type == "Mul":
        found = next((one for one in map(through, node.input) if one is not None), None)
    elif node.op_type == "MultiHeadAttention":
        found = through(node.input[2])
    return None if found is None else (found[0], {*found[1], node.name})


def smooth(
    group: Group,
    statistics: Mapping[str, TensorStatistics],
    load: Callable[[str], NDArray[np.float32]],
    range_of: RangeOf,
    signed: bool,
    symmetric: bool,
    per_channel: bool,
) -> Smoothing | None:
    """Search the strength for a group; None where no strength helps.

    The error is that of the layers' outputs for recorded vectors, with weights and activations quantized.

    Args:
        group: of `find_groups`.
        statistics: of its tensors.
        load: reads a weight, with the factors of other groups already applied.
        range_of: scale and zero point of a tensor without smoothing.
        signed, symmetric, per_channel: as in `sonic_convert.quantization.arithmetic`.
    """
    seen = [statistics[tensor] for tensor in group.tensors]
    rows = [one.rows for one in seen]
    if not all(len(some) for some in rows):
        return None
    low = np.min([one.channel_minimum for one in seen], axis=0)
    high = np.max([one.channel_maximum for one in seen], axis=0)
    weights = [_matrix(layer, load(layer.weight)) for layer in group.layers]
    inputs = np.concatenate(rows)
    expected = [inputs @ weight for weight in weights]

    def error(rounded: NDArray[np.float32], factors: NDArray[np.float32]) -> float:
        total = 0.0
        for weight, exact in zip(weights, expected, strict=True):
            integers = quantize_weight(weight * factors[:, None], 1, per_channel).floats
            total += float(np.square(rounded @ integers - exact).sum() / max(np.square(exact).sum(), 1e-20))
        return total

    ones = np.ones(inputs.shape[1], np.float32)
    plain = np.concatenate(
        [range_of(tensor).simulate(some) for tensor, some in zip(group.tensors, rows, strict=True)]
    )
    least, best = error(plain, ones), None
    largest = np.maximum(np.maximum(-low, high), 1e-8)
    reach = np.maximum(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), 1e-8)
    limit = _WORTHWHILE * least
    for strength in STRENGTHS:
        factors = np.clip(largest**strength / reach ** (1 - strength), *_LIMITS).astype(np.float32)
        ends = min(float((low / factors).min()), 0.0), max(float((high / factors).max()), 0.0)
        rounded = affine(*ends, signed, symmetric).simulate(inputs / factors)
        found = error(rounded, factors)
        if found < limit:
            limit, best = found, Smoothing(group, strength, factors)
    return best


def _matrix(layer: Layer, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """A layer's weight as (inputs, outputs)."""
    return weight if layer.input_axis == 0 else weight.T
