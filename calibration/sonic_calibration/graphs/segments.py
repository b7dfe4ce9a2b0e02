"""Running a graph piece by piece, so that what every layer sees can be looked at in little memory.

A graph of 6 GB is cut into segments of a few hundred megabytes of weights. Each is loaded once, all
samples pass through it, and what later segments need waits on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from sonic_calibration.graphs.stored_graph import StoredGraph, open_beside, replace_graph, tensor_bytes

_WEIGHT_BYTES = 400_000_000
_OBSERVED = 8  # tensors of one segment that are looked at; all of them are in memory together


@dataclass(frozen=True)
class Segment:
    """Nodes that follow each other.

    Attributes:
        nodes: of the graph.
        inputs: tensors from before.
        outputs: tensors that later segments, or the graph's results, need.
        observed: tensors made here that are to be looked at.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    observed: tuple[str, ...]


def cut(graph: StoredGraph, observed: Collection[str]) -> list[Segment]:
    """Cut a graph's nodes, which are in the order of their execution, into segments."""
    pieces: list[list[onnx.NodeProto]] = [[]]
    weight_bytes = count = 0
    for node in graph.model.graph.node:
        size = sum(
            tensor_bytes(graph.initializers[name]) for name in node.input if name in graph.initializers
        )
        looked_at = sum(name in observed for name in node.output)
        if pieces[-1] and (weight_bytes + size > _WEIGHT_BYTES or count + looked_at > _OBSERVED):
            pieces.append([])
            weight_bytes = count = 0
        pieces[-1].append(node)
        weight_bytes += size
        count += looked_at
    needed = {output.name for output in graph.model.graph.output}
    segments: list[Segment] = []
    for nodes in reversed(pieces):
        made = [name for node in nodes for name in node.output if name]
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        outputs = tuple(name for name in made if name in needed)
        inputs = tuple(name for name in read if name not in made and name not in graph.initializers)
        looked = tuple(name for name in made if name in observed)
        segments.append(Segment(tuple(nodes), inputs, outputs, looked))
        needed |= set(inputs)
    return segments[::-1]


def open_segment(
    graph: StoredGraph, segment: Segment, known: Mapping[str, np.ndarray]
) -> onnxruntime.InferenceSession:
    """Load a segment.

    Args:
        graph: where it comes from.
        segment: of `cut`.
        known: its inputs in one sample, for their types.
    """
    read = {name for node in segment.nodes for name in node.input}
    weights = [graph.initializers[name] for name in sorted(read) if name in graph.initializers]
    model = replace_graph(graph.model, segment.nodes, weights)
    del model.graph.input[:], model.graph.output[:]
    for name in segment.inputs:
        kind = onnx.helper.np_dtype_to_tensor_dtype(known[name].dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * known[name].ndim))
    for name in dict.fromkeys((*segment.outputs, *segment.observed)):
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    return open_beside(model, graph.path.parent)


class ValueStore:
    """Tensors of samples that wait on disk, a file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, sample: int, name: str) -> Path:
        return self._folder / f"{sample:05d}" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"

    def write(self, sample: int, name: str, values: np.ndarray) -> None:
        """Keep a tensor of a sample."""
        path = self._path(sample, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)

    def read(self, sample: int, name: str) -> np.ndarray:
        """The tensor again."""
        return np.asarray(np.load(self._path(sample, name), allow_pickle=False))

    def keep_only(self, names: Collection[str]) -> None:
        """Remove what is not among `names`, of all samples."""
        wanted = {self._path(0, name).name for name in names}
        for path in self._files():
            if path.name not in wanted:
                path.unlink()

    def _files(self) -> Iterator[Path]:
        return self._folder.glob("*/*.npy")


def needed_after(segments: list[Segment], index: int) -> set[str]:
    """Tensors that segments from `index` on read but do not make."""
    needed: set[str] = set()
    for segment in reversed(segments[index:]):
        needed -= {name for node in segment.nodes for name in node.output}
        needed |= set(segment.inputs)
    return needed
