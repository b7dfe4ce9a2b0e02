"""What the handlers of operators share: the state of a graph while it is lowered, and TVM's ONNX frontend."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, onnx_input

from sonic.errors import InputError
from sonic_convert.compilation.layout import Layout
from sonic_convert.compilation.values import Emitter, QuantizedConstant, Tensor, Value


@dataclass
class Lowering:
    """The state of a graph while it is lowered; handlers read and change it.

    Attributes:
        graph, opset: of the model.
        emit: appends operations to the Relax function.
        use_library: whether the kernel library may be called.
        values: constants and computed tensors, by their names in the graph.
        weights: parameters and arrays of the function's weights, by digest.
        keys: of the layers whose constants the kernel library keeps, in order.
        done: outputs of nodes that were lowered together with an earlier node.
        calls: how often each function of the kernel library is called.
        consumers: the nodes that read a value, by its name.
        producers: the node that computes a value, by its name.
        results: names of the graph's outputs.
    """

    graph: onnx.GraphProto
    opset: int
    emit: Emitter
    use_library: bool
    values: dict[str, Value] = field(default_factory=dict)
    weights: dict[str, tuple[Any, np.ndarray]] = field(default_factory=dict)
    keys: dict[str, None] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        self.producers = {name: node for node in self.graph.node for name in node.output}
        self.results = {output.name for output in self.graph.output}
        self.importer = ONNXGraphImporter({}, "float32")
        self.importer.bb = self.emit.builder

    def value(self, node: onnx.NodeProto, index: int) -> Value:
        """An input of a node."""
        return self.values[node.input[index]]

    def only_consumer(self, name: str, operator: str) -> onnx.NodeProto | None:
        """The only node that reads a value, if it is an `operator` and the value is not a graph output."""
        consumers = self.consumers[name]
        single = len(consumers) == 1 and consumers[0].op_type == operator and name not in self.results
        return consumers[0] if single else None

    def array(self, value: Value) -> np.ndarray:
        """A constant's real values."""
        assert not isinstance(value, Tensor)
        return value.real() if isinstance(value, QuantizedConstant) else np.asarray(value)

    def vector_operand(
        self, node: onnx.NodeProto, other: str, shape: Sequence[int], axis: int
    ) -> np.ndarray | None:
        """The constant operand of a node other than `other`, if it broadcasts to `shape` along `axis` alone.

        Returns:
            float32 (shape[axis],), or None.
        """
        value = self.values.get(next((name for name in node.input if name != other), ""))
        if value is None or isinstance(value, Tensor):
            return None
        wanted = [1] * len(shape)
        wanted[axis] = shape[axis]
        if [*[1] * (len(shape) - len(value.shape)), *value.shape] != wanted:
            return None
        return np.ascontiguousarray(self.array(value).reshape(shape[axis]), np.float32)

    def parameter(self, array: np.ndarray) -> Any:
        """A parameter of the function for `array`, which is stored in the weights file, not in programs."""
        array = np.ascontiguousarray(array)
        name = _digest(array)
        if name not in self.weights:
            kind = relax.TensorType(list(array.shape), array.dtype.name)
            self.weights[name] = (relax.Var(f"weight_{name}", kind), array)
        return self.weights[name][0]

    def weight(self, array: np.ndarray, *others: np.ndarray) -> tuple[Any, str]:
        """A layer's `parameter`, and its key.

        The kernel library caches what it prepares from a layer's constants, `array` and `others`, under the
        key, which is therefore their digest. An address would not do: it can be reused for other constants.
        """
        parameter = self.parameter(array)
        key = _digest(array, *others) if others else parameter.name.removeprefix("weight_")
        self.keys[key] = None
        return parameter, key

    def library(
        self, name: str, arguments: Sequence[Any], shape: Sequence[int], dtype: str = "float32"
    ) -> Any:
        """Call a function of the kernel library, and count the call."""
        self.calls[name] += 1
        return self.emit.library(name, arguments, shape, dtype)


Handler = Callable[[Lowering, onnx.NodeProto], None]
"""Lowers one node: reads its inputs from the state's `values`, and sets its outputs there."""


def lower_with_tvm_frontend(state: Lowering, node: onnx.NodeProto) -> None:
    """Lower a node with TVM's ONNX frontend, on tensors in the graph's own layout."""
    inputs = onnx_input()
    for name in node.input:
        inputs.append(state.emit.plain(state.values[name]).expression if name else None)
    attributes = state.importer._parse_attr(node.attribute)
    attributes["tvm_custom"] = {"name": node.name, "num_outputs": len(node.output)}
    try:
        result = state.importer._convert_operator(node.op_type, inputs, attributes, state.opset)
    except NotImplementedError as error:
        raise InputError(
            f"the operator {node.op_type} (node '{node.name}') cannot be compiled; leave this submodel to "
            "ONNX Runtime, or add it to sonic_convert/compilation/operators.py"
        ) from error
    result = state.emit.emit(result)
    for index, name in enumerate(node.output):
        single = not isinstance(result.ty, relax.TupleType)
        variable = result if single else state.emit.emit(relax.TupleGetItem(result, index))
        shape = tuple(int(size) for size in variable.ty.shape.values)
        state.values[name] = Tensor(variable, Layout.plain(shape), str(variable.ty.dtype))


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def _digest(*arrays: np.ndarray) -> str:
    """A name that only equal arrays share."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]
