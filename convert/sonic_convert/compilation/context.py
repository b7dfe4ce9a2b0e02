"""What the handlers of operators share: a graph's state while it is lowered, and TVM's own front end."""

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
from sonic_convert.compilation.values import Emitter, RoundedConstant, Tensor, Value


@dataclass
class Lowering:
    """The state of a graph while it is lowered; handlers read and write it."""

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
        """The one node that reads a value, if it is an `operator` and the value is no output."""
        consumers = self.consumers[name]
        single = len(consumers) == 1 and consumers[0].op_type == operator and name not in self.results
        return consumers[0] if single else None

    def array(self, value: Value) -> np.ndarray:
        """A constant's real numbers."""
        assert not isinstance(value, Tensor)
        return value.real() if isinstance(value, RoundedConstant) else np.asarray(value)

    def vector_operand(
        self, node: onnx.NodeProto, other: str, shape: Sequence[int], axis: int
    ) -> np.ndarray | None:
        """The constant operand of a node beside `other`, of that shape, if it varies along `axis` alone."""
        value = self.values.get(next((name for name in node.input if name != other), ""))
        if value is None or isinstance(value, Tensor):
            return None
        wanted = [1] * len(shape)
        wanted[axis] = shape[axis]
        if [*[1] * (len(shape) - len(value.shape)), *value.shape] != wanted:
            return None
        return np.ascontiguousarray(self.array(value).reshape(shape[axis]), np.float32)

    def parameter(self, array: np.ndarray) -> Any:
        """A parameter of the function that holds `array`, once in the weights' file and in no program."""
        array = np.ascontiguousarray(array)
        name = _digest(array)
        if name not in self.weights:
            kind = relax.TensorType(list(array.shape), array.dtype.name)
            self.weights[name] = (relax.Var(f"weight_{name}", kind), array)
        return self.weights[name][0]

    def weight(self, array: np.ndarray, *others: np.ndarray) -> tuple[Any, str]:
        """A layer's `parameter`, and its key.

        The kernel library keeps what it makes of a layer's constants, `array` and `others`, under the key; so
        it is their digest. An address would not do: it can come back for other numbers.
        """
        parameter = self.parameter(array)
        key = _digest(array, *others) if others else parameter.name.removeprefix("weight_")
        self.keys[key] = None
        return parameter, key

    def library(
        self, name: str, arguments: Sequence[Any], shape: Sequence[int], dtype: str = "float32"
    ) -> Any:
        """A call of the kernel library, counted."""
        self.calls[name] += 1
        return self.emit.library(name, arguments, shape, dtype)


Handler = Callable[[Lowering, onnx.NodeProto], None]
"""Lowers one node: reads its inputs from the state's `values`, and sets its outputs there."""


def lower_with_tvm_frontend(state: Lowering, node: onnx.NodeProto) -> None:
    """Let TVM's ONNX front end lower a node, on tensors stored as the graph sees them."""
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
    """A name for numbers, the same for the same numbers only."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]
