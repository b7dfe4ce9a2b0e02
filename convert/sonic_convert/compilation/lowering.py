"""From an ONNX graph with fixed shapes to a Relax function for one aarch64 processor.

Nodes are lowered one after another. What depends on constants and shapes alone is computed here; Transpose
and Reshape change layouts (see `layout`); convolutions, linear maps, products and attention are calls of the
kernel library; normalisations are loops of our own; everything else is left to TVM's own ONNX front end.

    lowered = lower(onnx.load("unet.onnx"), {"sample": (3, 25, 8, 16, 16), ...}, folder)
    lowered.module, lowered.weights
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from tvm import IRModule, relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, onnx_input

from sonic.errors import InputError
from sonic_calibration.graphs.stored_graph import read_tensor
from sonic_convert.compilation.layout import Layout
from sonic_convert.compilation.values import Emitter, RoundedConstant, Tensor, Value

Shapes = Mapping[str, Sequence[int]]
Handler = Callable[["Lowering", onnx.NodeProto], None]
HANDLERS: dict[str, Handler] = {}


def handles(*operators: str) -> Callable[[Handler], Handler]:
    """Registers how operators are lowered."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(operators, handler))
        return handler

    return register


@dataclass(frozen=True)
class Lowered:
    """A Relax module and what it is called with.

    Attributes:
        module: its function "main" takes the graph's inputs, then the weights.
        inputs: names of the inputs.
        outputs: names of the outputs.
        weights: arrays by name, in the order of the parameters.
        keys: what the kernel library calls the layers whose constants it keeps.
        library_calls: how often each function of the kernel library is called.
    """

    module: IRModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, np.ndarray]
    keys: tuple[str, ...]
    library_calls: dict[str, int]


@dataclass
class Lowering:
    """The state of a graph on its way; handlers read and write it."""

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


def lower(model: onnx.ModelProto, shapes: Shapes, folder: Path, use_library: bool = True) -> Lowered:
    """Lower a graph for given shapes of its inputs.

    Args:
        model: the graph, without its external data.
        shapes: of every input that has dynamic axes.
        folder: where its external data is.
        use_library: False leaves everything to TVM, for comparison.

    Raises:
        InputError: an operator is not supported, or a shape is missing.
    """
    from sonic_convert.compilation import operators  # noqa: F401 (registers all handlers)

    builder = relax.BlockBuilder()
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    state = Lowering(model.graph, opset, Emitter(builder), use_library)
    for stored in model.graph.initializer:
        state.values[stored.name] = read_tensor(stored, folder)
    names, parameters = [], []
    for value in model.graph.input:
        if value.name in state.values:
            continue
        kind = value.type.tensor_type
        shape = tuple(shapes.get(value.name, [size.dim_value for size in kind.shape.dim]))
        if not all(shape):
            raise InputError(f"the input '{value.name}' has dynamic axes; give a shape for it")
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        variable = relax.Var(value.name, relax.TensorType(list(shape), dtype))
        names.append(value.name)
        parameters.append(variable)
        state.values[value.name] = Tensor(variable, Layout.plain(shape), dtype)
    # The weights are known only at the end, so the function is put together by hand.
    builder.begin_scope(parameters)
    builder._begin_dataflow_block()
    for node in model.graph.node:
        _lower_node(state, node)
    results = [state.emit.plain(state.values[output.name]).expression for output in model.graph.output]
    outputs = [builder.emit_output(result) for result in results]
    block = builder._end_block()
    weights = list(state.weights.values())
    body = builder.normalize(relax.SeqExpr([block], relax.Tuple(outputs)))
    builder.end_scope()
    function = relax.Function(
        [*parameters, *(variable for variable, _ in weights)], body, None, True
    ).with_attrs({"global_symbol": "main", "num_input": len(parameters)})
    builder.add_func(function, "main")
    return Lowered(
        builder.get(),
        tuple(names),
        tuple(output.name for output in model.graph.output),
        {key: array for key, (_, array) in state.weights.items()},
        tuple(state.keys),
        dict(state.calls),
    )


def _digest(*arrays: np.ndarray) -> str:
    """A name for numbers, the same for the same numbers only."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def _lower_node(state: Lowering, node: onnx.NodeProto) -> None:
    if node.output[0] in state.done:
        return
    inputs = [state.values[name] for name in node.input if name]
    if node.op_type == "DequantizeLinear":  # its constants stay integers
        HANDLERS[node.op_type](state, node)
    elif not any(isinstance(value, Tensor) for value in inputs):
        _evaluate(state, node)
    elif node.op_type == "Shape":
        state.values[node.output[0]] = _shape(node, inputs[0].shape)
    elif node.op_type in HANDLERS:
        HANDLERS[node.op_type](state, node)
    else:
        by_front_end(state, node)


def _shape(node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    attributes = attributes_of(node)
    return np.array(shape[attributes.get("start", 0) : attributes.get("end", len(shape))], np.int64)


def _evaluate(state: Lowering, node: onnx.NodeProto) -> None:
    """Compute a node whose inputs are all known."""
    names = [name for name in node.input if name]
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [_info(name, state.array(state.values[name])) for name in dict.fromkeys(names)],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", state.opset)])
    feeds = {name: state.array(state.values[name]) for name in names}
    for name, array in zip(node.output, ReferenceEvaluator(model).run(None, feeds), strict=True):
        state.values[name] = np.asarray(array)


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, array.shape)


def by_front_end(state: Lowering, node: onnx.NodeProto) -> None:
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
