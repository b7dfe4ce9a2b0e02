"""Who makes and who reads the tensors of a graph."""

from __future__ import annotations

from collections import defaultdict

import onnx

from sonic_calibration.stored_graph import StoredGraph


class Topology:
    """Lookups in a graph.

    Attributes:
        producers: the node that makes a tensor, by tensor.
        consumers: the nodes that read a tensor or a weight, by its name.
        outputs: names of the graph's results.
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
        """The one node that reads a tensor; None where there are more, or it is a result."""
        readers = self.consumers[tensor]
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def is_vector(self, name: str) -> bool:
        """Whether it is a constant with one axis."""
        return name in self.graph.initializers and len(self.graph.shape(name)) == 1

    def added_bias(self, output: str) -> str | None:
        """The constant vector that is added to a tensor right away, or None."""
        reader = self.only_reader(output)
        if reader is None or reader.op_type != "Add":
            return None
        vectors = [name for name in reader.input if name != output and self.is_vector(name)]
        return vectors[0] if vectors else None
