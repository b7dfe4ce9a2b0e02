"""Runs a graph segment by segment, so that every layer's activations can be observed in little memory.

A 6 GB graph is split into segments with a few hundred megabytes of weights each. Each segment is loaded
once and runs on all samples; tensors that later segments need are kept on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from sonic_calibration.graphs.stored_graph import (
    StoredGraph,
    open_with_external_weights,
    replace_graph,
    tensor_bytes,
)

_WEIGHT_BYTES_PER_SEGMENT = 400_000_000
_OBSERVED_PER_SEGMENT = 8  # the observed tensors of a segment are all in memory at the same time


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes of a graph.

    Attributes:
        nodes: the nodes, in execution order.
        inputs: graph inputs and tensors of earlier segments that the nodes read.
        outputs: computed tensors that later segments read or that are outputs of the graph.
        observed: computed tensors whose statistics are collected.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    observed: tuple[str, ...]


def split_graph(graph: StoredGraph, observed: Collection[str]) -> list[Segment]:
    """Split a graph into segments of limited weights and observed tensors.

    Args:
        graph: its nodes are in execution order, as ONNX demands.
        observed: names of the tensors whose statistics are collected.

    Returns:
        The segments in execution order; every node is in exactly one of them.
    """
    groups: list[list[onnx.NodeProto]] = [[]]
    weight_bytes = observed_count = 0
    for node in graph.model.graph.node:
        size = sum(
            tensor_bytes(graph.initializers[name]) for name in node.input if name in graph.initializers
        )
        observed_here = sum(name in observed for name in node.output)
        if groups[-1] and (
            weight_bytes + size > _WEIGHT_BYTES_PER_SEGMENT
            or observed_count + observed_here > _OBSERVED_PER_SEGMENT
        ):
            groups.append([])
            weight_bytes = observed_count = 0
        groups[-1].append(node)
        weight_bytes += size
        observed_count += observed_here
    needed = {output.name for output in graph.model.graph.output}
    segments: list[Segment] = []
    for nodes in reversed(groups):
        computed = [name for node in nodes for name in node.output if name]
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        outputs = tuple(name for name in computed if name in needed)
        inputs = tuple(name for name in read if name not in computed and name not in graph.initializers)
        segment_observed = tuple(name for name in computed if name in observed)
        segments.append(Segment(tuple(nodes), inputs, outputs, segment_observed))
        needed |= set(inputs)
    return segments[::-1]


def open_segment(
    graph: StoredGraph, segment: Segment, example_inputs: Mapping[str, np.ndarray]
) -> onnxruntime.InferenceSession:
    """Load a segment.

    Args:
        graph: the graph that the segment is part of.
        segment: a segment returned by `split_graph`.
        example_inputs: its inputs in one sample by name, which give their dtypes and ranks.

    Returns:
        A session with the segment's inputs, and its outputs and observed tensors as outputs.
    """
    read = {name for node in segment.nodes for name in node.input}
    weights = [graph.initializers[name] for name in sorted(read) if name in graph.initializers]
    model = replace_graph(graph.model, segment.nodes, weights)
    del model.graph.input[:], model.graph.output[:]
    for name in segment.inputs:
        example = example_inputs[name]
        element_type = onnx.helper.np_dtype_to_tensor_dtype(example.dtype)
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(name, element_type, [None] * example.ndim)
        )
    for name in dict.fromkeys((*segment.outputs, *segment.observed)):
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    return open_with_external_weights(model, graph.path.parent)


class ValueStore:
    """Keeps tensors of samples on disk, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, sample: int, name: str) -> Path:
        return self._folder / f"{sample:05d}" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"

    def write(self, sample: int, name: str, values: np.ndarray) -> None:
        """Store a tensor of a sample, replacing an earlier one of the same name."""
        path = self._path(sample, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)

    def read(self, sample: int, name: str) -> np.ndarray:
        """Read back a stored tensor."""
        return np.asarray(np.load(self._path(sample, name), allow_pickle=False))

    def keep_only(self, names: Collection[str]) -> None:
        """Delete all tensors, of every sample, whose names are not in `names`."""
        wanted = {self._path(0, name).name for name in names}
        for path in self._files():
            if path.name not in wanted:
                path.unlink()

    def _files(self) -> Iterator[Path]:
        return self._folder.glob("*/*.npy")


def needed_from(segments: list[Segment], index: int) -> set[str]:
    """Names of the tensors that segments `index` and later read but do not compute themselves."""
    needed: set[str] = set()
    for segment in reversed(segments[index:]):
        needed -= {name for node in segment.nodes for name in node.output}
        needed |= set(segment.inputs)
    return needed
