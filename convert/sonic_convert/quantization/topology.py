"""Which nodes produce and which read the tensors of a graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from sonic_calibration.graphs.stored_graph import StoredGraph


@dataclass(frozen=True)
class PictureRow:
    """A convolution of pictures that are laid side by side (`convolve_frames`).

    Attributes:
        pictures, result: the tensors of separate pictures before and after.
        nodes: names of the nodes that put the pictures in a row and take them apart again.
    """

    pictures: str
    result: str
    nodes: frozenset[str]


class Topology:
    """Lookups in a graph.

    Attributes:
        producers: the node that produces a tensor, by the tensor's name.
        consumers: the nodes that read a tensor or a weight, by its name.
        outputs: names of the graph's outputs.
    """

    def __init__(self, graph: StoredGraph) -> None:
        self.graph = graph
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.outputs = {output.name for output in graph.model.graph.output}
        for node in graph.model.graph.node:
            self.producers |= dict.fromkeys(node.output, node)
            for name in dict.fromkeys(node.input):
                self.consumers[name].append(node)

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The only node that reads a tensor; None where there are more or none, or it is a graph output."""
        readers = self.consumers[tensor]
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def is_vector(self, name: str) -> bool:
        """Whether a name is that of a constant with one axis."""
        return name in self.graph.initializers and len(self.graph.shape(name)) == 1

    def added_bias(self, output: str) -> str | None:
        """The constant vector that the only reader of a tensor adds to it, or None."""
        reader = self.only_reader(output)
        if reader is None or reader.op_type != "Add":
            return None
        vectors = [name for name in reader.input if name != output and self.is_vector(name)]
        return vectors[0] if vectors else None

    def picture_rows(self, names: Iterable[str]) -> dict[str, PictureRow]:
        """The convolutions of pictures in a row among the nodes with these names, by name."""
        wanted = set(names)
        rows = {
            node.name: self._picture_row(node)
            for node in self.graph.model.graph.node
            if node.name in wanted and node.op_type == "Conv"
        }
        return {name: row for name, row in rows.items() if row is not None}

    def _picture_row(self, node: onnx.NodeProto) -> PictureRow | None:
        """The picture row around a convolution, or None."""
        names: set[str] = set()
        pictures, result = node.input[0], node.output[0]
        for operator in ("Reshape", "Transpose", "Pad", "Reshape"):
            producer = self.producers.get(pictures)
            if producer is None or producer.op_type != operator or self.only_reader(pictures) is None:
                return None
            names.add(producer.name)
            pictures = producer.input[0]
        for operator in ("Reshape", "Slice", "Transpose", "Reshape"):
            reader = self.only_reader(result)
            if reader is None or reader.op_type != operator:
                return None
            names.add(reader.name)
            result = reader.output[0]
        return PictureRow(pictures, result, frozenset(names))
