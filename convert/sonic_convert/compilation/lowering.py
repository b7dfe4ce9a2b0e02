"""Lowers an ONNX graph with fixed shapes to a Relax function.

Nodes are lowered one after another. What depends on constants and shapes alone is computed here; Transpose
and Reshape change layouts (see `layout`); convolutions, linear maps, products and attention are calls of the
kernel library; normalisations are custom loop nests; everything else is left to TVM's ONNX frontend.

    lowered = lower(onnx.load("unet.onnx"), {"sample": (3, 25, 8, 16, 16), ...}, folder)
    lowered.module, lowered.weights
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from tvm import IRModule, relax

from sonic.errors import InputError
from sonic_calibration.graphs.stored_graph import read_tensor
from sonic_convert.compilation import operators, quantized_operators, shape_operators
from sonic_convert.compilation.context import Handler, Lowering, attributes_of, lower_with_tvm_frontend
from sonic_convert.compilation.layout import Layout
from sonic_convert.compilation.values import Emitter, Tensor

Shapes = Mapping[str, Sequence[int]]
_HANDLERS: dict[str, Handler] = {
    **operators.HANDLERS,
    **quantized_operators.HANDLERS,
    **shape_operators.HANDLERS,
}


@dataclass(frozen=True)
class Lowered:
    """A Relax module, and what it is called with.

    Attributes:
        module: its function "main" takes the graph's inputs, then the weights.
        inputs: names of the inputs.
        outputs: names of the outputs.
        weights: arrays by name, in the order of the parameters.
        keys: of the layers whose constants the kernel library keeps.
        library_calls: how often each function of the kernel library is called.
    """

    module: IRModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, np.ndarray]
    keys: tuple[str, ...]
    library_calls: dict[str, int]


def lower(model: onnx.ModelProto, shapes: Shapes, folder: Path, use_library: bool = True) -> Lowered:
    """Lower a graph for given shapes of its inputs.

    Args:
        model: the graph, without its external data.
        shapes: of every input with dynamic axes, by name.
        folder: of its external data.
        use_library: False leaves everything to TVM, for comparison.

    Raises:
        InputError: an operator is not supported, or a shape is missing.
    """
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
    # The weights are known only at the end, so the function is assembled by hand.
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


def _lower_node(state: Lowering, node: onnx.NodeProto) -> None:
    if node.output[0] in state.done:
        return
    inputs = [state.values[name] for name in node.input if name]
    if node.op_type == "DequantizeLinear":  # its constants stay integers
        _HANDLERS[node.op_type](state, node)
    elif not any(isinstance(value, Tensor) for value in inputs):
        _evaluate(state, node)
    elif node.op_type == "Shape":
        state.values[node.output[0]] = _shape(node, inputs[0].shape)
    elif node.op_type in _HANDLERS:
        _HANDLERS[node.op_type](state, node)
    else:
        lower_with_tvm_frontend(state, node)


def _shape(node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    attributes = attributes_of(node)
    return np.array(shape[attributes.get("start", 0) : attributes.get("end", len(shape))], np.int64)


def _evaluate(state: Lowering, node: onnx.NodeProto) -> None:
    """Compute a node whose inputs are all constants."""
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
