"""Evaluates a TorchScript graph node by node, and keeps what depends on its inputs as a program.

Runs in a child process only; see :mod:`.torchscript_reader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sonic_convert.modules.tensor_program import OPERATORS, Call, Reference, TensorProgram, Weight
from sonic_convert.modules.torchscript_values import (
    DTYPE_NUMBERS,
    NUMBERS,
    SPECIAL,
    STRUCTURE,
    UNREACHED,
    VIEWS,
    WRITES,
    Object,
    RefusedError,
    Value,
    View,
    concrete,
    depends,
    index_of,
    last_line,
    share_memory,
)

PREFIX = "archive"
_NODES_LIMIT = 50_000


def follow(archive: Any, graph: Any, inputs: Sequence[Tensor]) -> TensorProgram:
    """Evaluate an inlined graph for (image, [grid, ...]) and keep what depends on them.

    Raises:
        RefusedError: the graph has other inputs, uses an unknown operator, or does not come to an end.
    """
    follower = _Follower(len(inputs))
    follower.check_operators(graph)
    given = list(graph.inputs())
    image, *grids = (Value(tensor, index) for index, tensor in enumerate(inputs))
    kinds = [value.type().kind() for value in given[1:]]
    if kinds not in (["TensorType", "ListType"], ["TensorType", "TupleType"]):
        raise RefusedError("does not take a picture and a list of three grids, as the face detector does")
    values = {
        given[0].debugName(): Object(archive, PREFIX),
        given[1].debugName(): image,
        given[2].debugName(): grids,
    }
    try:
        (result,) = follower.run(graph, values)
    except (RuntimeError, MemoryError, ValueError, TypeError, IndexError, ArithmeticError) as error:
        raise RefusedError(
            f"fails on a picture of {inputs[0].shape[3]} x {inputs[0].shape[2]} ({last_line(error)})"
        ) from error
    if not isinstance(result, Value) or not isinstance(result.concrete, Tensor) or result.index is None:
        raise RefusedError("does not return one tensor that depends on the picture")
    return TensorProgram(len(inputs), follower.calls, result.index, follower.used_weights())


class _Follower:
    """Evaluates nodes; `calls` is the program so far."""

    def __init__(self, inputs: int) -> None:
        self.calls: list[Call] = []
        self._inputs = inputs
        self._nodes = 0
        self._names: dict[int, tuple[str, Tensor]] = {}  # the tensor too: its identity must not be reused
        self._weights: dict[str, Tensor] = {}
        self._attributes: dict[tuple[str, str], Any] = {}  # of the archive's modules, by path and name

    def used_weights(self) -> dict[str, Tensor]:
        """The tensors that the program's calls refer to, each with memory of its own."""
        return {name: tensor.clone().contiguous() for name, tensor in self._weights.items()}

    def check_operators(self, block: Any) -> None:
        """Refuse a graph with an operator that is unknown here, before anything is run."""
        for node in block.nodes():
            kind = node.kind()
            namespace, _, name = kind.partition("::")
            known = namespace == "aten" and (
                name in OPERATORS
                or name in NUMBERS
                or name in SPECIAL
                or name.startswith(UNREACHED)
                or (name.endswith("_") and name[:-1] in (*OPERATORS, *WRITES))
            )
            if not known and kind not in STRUCTURE:
                raise RefusedError(f"uses the operator {kind}, which a face detector has no use for")
            for inner in node.blocks():
                self.check_operators(inner)

    def run(self, block: Any, values: dict[str, Any]) -> list[Any]:
        """Evaluate a block's nodes; `values` are by name, and get the nodes' results."""
        for node in block.nodes():
            self._nodes += 1
            if self._nodes > _NODES_LIMIT:
                raise RefusedError(
                    f"does not come to an end within {_NODES_LIMIT:,} operations, where a face detector has "
                    "a thousand"
                )
            results = self._evaluate(node, [values.get(each.debugName()) for each in node.inputs()], values)
            for output, result in zip(node.outputs(), results, strict=True):
                values[output.debugName()] = result
        return [values[each.debugName()] for each in block.outputs()]

    def _evaluate(self, node: Any, given: list[Any], values: dict[str, Any]) -> list[Any]:
        kind = node.kind()
        if kind == "prim::If":
            branches = list(node.blocks())
            return self.run(branches[0 if concrete(given[0]) else 1], values)
        if kind == "prim::Loop":
            return self._loop(node, given, values)
        if kind in STRUCTURE:
            return self._structure(kind, node, given)
        name = kind.removeprefix("aten::")
        if name in SPECIAL:
            return [self._special(name, node, given)]
        of_tensors = any(isinstance(concrete(each), Tensor) for each in given)
        if name in NUMBERS and not (name in OPERATORS and of_tensors):
            return [self._number(name, given)]
        return [self._operator(name, node, given)]

    def _loop(self, node: Any, given: list[Any], values: dict[str, Any]) -> list[Any]:
        (body,) = node.blocks()
        count, going, *carried = given
        names = [each.debugName() for each in body.inputs()]
        turn = 0
        while turn < concrete(count) and concrete(going):
            self._nodes += 1
            values.update(zip(names, [Value(turn), *carried], strict=True))
            going, *carried = self.run(body, values)
            turn += 1
            if self._nodes > _NODES_LIMIT:
                raise RefusedError("has a loop that does not come to an end")
        return carried

    def _structure(self, kind: str, node: Any, given: list[Any]) -> list[Any]:
        if kind == "prim::Constant":
            value = node.output().toIValue() if node.hasAttribute("value") else None
            return [self._wrap(value, f"{PREFIX}.constant_{self._nodes}")]
        if kind == "prim::GetAttr":
            owner, name = given[0], node.s("name")
            if (owner.path, name) not in self._attributes:
                found = self._wrap(getattr(owner.module, name), f"{owner.path}.{name}")
                self._attributes[owner.path, name] = found
            return [self._attributes[owner.path, name]]
        if kind == "prim::SetAttr":
            self._attributes[given[0].path, node.s("name")] = given[1]
            return []
        if kind in ("prim::ListConstruct", "prim::TupleConstruct"):
            return [list(given)]
        if kind in ("prim::ListUnpack", "prim::TupleUnpack"):
            return list(given[0])
        if kind == "prim::TupleIndex":
            return [given[0][concrete(given[1])]]
        if kind == "prim::RaiseException":
            raise RefusedError(f"stops with the error {str(concrete(given[0]))[:200]!r}")
        if kind == "prim::NumToTensor":
            return [self._record("tensor_of", [given[0]], {})]
        if kind == "prim::dtype":
            return [Value(DTYPE_NUMBERS[concrete(given[0]).dtype])]
        if kind == "prim::device":
            return [Value(torch.device("cpu"))]
        if kind in ("prim::min", "prim::max"):
            function = min if kind == "prim::min" else max
            return [Value(function(*map(concrete, given)))]
        if kind in ("prim::unchecked_cast", "prim::data"):
            return [given[0]]
        return [Value(None) for _ in node.outputs()]  # prim::Uninitialized, prim::Print

    def _special(self, name: str, node: Any, given: list[Any]) -> Any:
        if name in ("append", "__getitem__", "__setitem__", "len", "extend") and isinstance(given[0], list):
            return self._list(name, given)
        if name == "size" and len(given) == 1:
            return [self._record("size", [given[0], Value(d)], {}) for d in range(concrete(given[0]).ndim)]
        if name == "size":
            return self._record("size", given, {})
        if name == "dim":
            return Value(concrete(given[0]).ndim)
        if name == "len":
            return self._record("size", [given[0], Value(0)], {})
        if name == "numel":
            return self._product(self._special("size", node, given[:1]))
        if name in ("Int", "Float", "IntImplicit", "FloatImplicit", "ScalarImplicit", "item"):
            is_float = name.startswith("Float") or isinstance(concrete(given[0]), float)
            floating = isinstance(concrete(given[0]), Tensor) and concrete(given[0]).is_floating_point()
            whole = name.startswith("Int") or not (is_float or floating)
            return self._record("int_of" if whole else "float_of", given[:1], {})
        if name == "Bool":
            return Value(bool(concrete(given[0])))
        if name in ("to", "type_as", "float", "_to_copy"):
            return self._convert(name, given)
        if name in ("detach", "alias", "dropout", "lift_fresh", "list"):
            return list(given[0]) if isinstance(given[0], list) else given[0]
        if name == "_convolution":
            return self._record("convolution", given[:9], {})
        if name == "empty_like":  # to be filled
            return self._record("zeros_like", given[:1], {})
        if name in ("warn", "format"):
            return Value("")
        raise RefusedError(
            f"uses aten::{name} of {type(concrete(given[0])).__name__}, which is not known here"
        )

    def _list(self, name: str, given: list[Any]) -> Any:
        values = given[0]
        if name == "append":
            values.append(given[1])
        elif name == "extend":
            values.extend(given[1])
        elif name == "__setitem__":
            values[concrete(given[1])] = given[2]
        elif name == "len":
            return Value(len(values))
        else:
            return values[concrete(given[1])]
        return values

    def _product(self, sizes: list[Any]) -> Any:
        total = Value(1)
        for size in sizes:
            total = self._number("mul", [total, size])
        return total

    def _convert(self, name: str, given: list[Any]) -> Any:
        kinds = {value: kind for kind, value in DTYPE_NUMBERS.items()}
        target = torch.float32 if name == "float" else None
        for each in map(concrete, given[1:]):
            if target is None and isinstance(each, Tensor):
                target = each.dtype
            elif target is None and isinstance(each, int) and not isinstance(each, bool):
                target = kinds[each]
        if target is None or target == concrete(given[0]).dtype:
            return given[0]
        return self._record("convert", [given[0], Value(target)], {})

    def _number(self, name: str, given: list[Any]) -> Value:
        function, recorded = NUMBERS[name]
        if recorded is None or all(isinstance(each, Value) and each.index is None for each in given):
            return Value(function(*map(concrete, given)))
        return self._record(recorded, given, {})

    def _operator(self, name: str, node: Any, given: list[Any]) -> Any:
        written = name.endswith("_")
        name = name.removesuffix("_")
        if name not in OPERATORS and not written:
            raise RefusedError(f"uses the operator aten::{name}, which is not known here")
        schema = torch._C.parse_schema(node.schema())
        arguments: list[Any] = []
        keywords: dict[str, Any] = {}
        for argument, value in zip(schema.arguments, given, strict=True):
            if argument.name in ("layout", "device", "pin_memory", "memory_format", "implicit"):
                continue
            if argument.name == "dtype" and concrete(value) is not None:
                numbers = {number: dtype for dtype, number in DTYPE_NUMBERS.items()}
                value = Value(numbers[concrete(value)])
            if argument.name == "alpha" and index_of(value) is None and concrete(value) == 1:
                continue
            if argument.name in ("dtype", "alpha") or argument.kwarg_only:
                if concrete(value) is not None:
                    keywords[argument.name] = value
            else:
                arguments.append(value)
        if written:
            return self._write(name, arguments, keywords)
        result = self._record(name, arguments, keywords)
        if name in VIEWS:
            for part in result if isinstance(result, list) else [result]:
                if share_memory(part.concrete, arguments[0].concrete):
                    part.view = View(arguments[0], name, arguments, arguments[0].version)
        return result

    def _write(self, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Value:
        """An operator that changes its first argument, as one that makes a new value."""
        self._refresh(arguments)
        target = arguments[0]
        if name == "copy":
            result = arguments[1]
            if concrete(result).shape != concrete(target).shape:
                result = self._record("expand_as", [result, target], {})
            result = self._convert("type_as", [result, target])
        elif name in WRITES:
            result = self._record("full_like", [target, *arguments[1:], *[Value(0)] * (name == "zero")], {})
        else:
            result = self._record(name, arguments, keywords)
        self._replace(target, result)
        return target

    def _replace(self, target: Value, new: Value) -> None:
        """Let `target` have the values `new`, and so what `target` is a part of."""
        view, target.view = target.view, None
        target.concrete, target.index, target.version = new.concrete, new.index, target.version + 1
        if view is None:
            return
        if view.operator not in ("slice", "select") or any(map(depends, view.arguments[1:])):
            raise RefusedError(f"writes into a part of a tensor that aten::{view.operator} made")
        dim, start, *more = map(concrete, view.arguments[1:])
        part = new
        if view.operator == "select":
            part = self._record("unsqueeze", [new, Value(dim)], {})
            end, step = start + 1 or None, 1
        else:
            end, step = more[0], more[1]
        if step != 1:
            raise RefusedError("writes into every second value of a tensor")
        parts = [part]
        if start not in (None, 0):
            parts.insert(0, self._record("slice", [view.base, *map(Value, (dim, 0, start, 1))], {}))
        if end is not None and end < concrete(view.base).shape[dim]:
            parts.append(self._record("slice", [view.base, *map(Value, (dim, end, None, 1))], {}))
        joined = self._record("cat", [parts, Value(dim)], {}) if len(parts) > 1 else part
        self._replace(view.base, joined)
        target.view = View(view.base, view.operator, view.arguments, view.base.version)

    def _refresh(self, value: Any) -> None:
        """Make a part again if what it is a part of has been written into since."""
        if isinstance(value, list):
            for each in value:
                self._refresh(each)
        elif isinstance(value, Value) and value.view is not None:
            view = value.view
            self._refresh(view.base)
            if view.base.version != view.version:
                if view.operator in ("split", "split_with_sizes", "chunk", "unbind"):
                    raise RefusedError("writes into a tensor that was split")
                made = self._record(view.operator, view.arguments, {})
                value.concrete, value.index = made.concrete, made.index
                value.view = View(view.base, view.operator, view.arguments, view.base.version)

    def _record(self, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        self._refresh(arguments)
        result = OPERATORS[name](
            *map(concrete, arguments), **{key: concrete(value) for key, value in keywords.items()}
        )
        if not any(map(depends, (*arguments, *keywords.values()))):
            return self._wrap(result, f"{PREFIX}.constant_{self._nodes}")
        self.calls.append(
            Call(
                name,
                tuple(self._stored(each) for each in arguments),
                {key: self._stored(each) for key, each in keywords.items()},
            )
        )
        index = self._inputs + len(self.calls) - 1
        if isinstance(result, list | tuple):
            return [
                self._record("item", [Value(list(result), index), Value(i)], {}) for i in range(len(result))
            ]
        return Value(result, index)

    def _stored(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._stored(each) for each in value]
        if value.index is not None:
            return Reference(value.index)
        if isinstance(value.concrete, Tensor):
            name, tensor = self._names[id(value.concrete)]
            self._weights[name] = tensor
            return Weight(name)
        return value.concrete

    def _wrap(self, value: Any, path: str) -> Any:
        if isinstance(value, list | tuple):
            return [self._wrap(each, f"{path}_{index}") for index, each in enumerate(value)]
        if isinstance(value, torch.nn.Module | torch._C.ScriptObject):
            return Object(value, path)
        if isinstance(value, Tensor):
            value = value.detach()
            self._names[id(value)] = path, value
        return Value(value)
