"""Programs of tensor operations without control flow: what is left of a TorchScript archive that was read.

A program is a JSON file and the weights beside it. It calls operators of a fixed list, one after the other,
and nothing else, so running it runs no code of the archive.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sonic.bounded import read_json
from sonic.errors import InputError

PROGRAM, WEIGHTS = "program.json", "weights.safetensors"
PROGRAM_LIMIT_BYTES = 32 << 20
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
}

_TENSOR_OPERATORS = """
    add sub mul div pow rsub maximum minimum floor_divide remainder where
    eq ne gt ge lt le logical_and logical_or logical_not
    sigmoid tanh relu exp sqrt rsqrt log neg abs floor ceil round square reciprocal softmax
    clamp clamp_min clamp_max sum mean amax amin
    silu relu6 leaky_relu hardswish hardsigmoid hardtanh elu gelu
    mish softplus prelu
    conv2d conv_transpose2d convolution batch_norm max_pool2d avg_pool2d adaptive_avg_pool2d linear matmul
    constant_pad_nd layer_norm
    view reshape permute transpose t flatten contiguous clone expand expand_as unsqueeze squeeze select narrow
    repeat split split_with_sizes chunk unbind cat stack size
    zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full arange
"""


def _slice(values: Tensor, dim: int = 0, start: int | None = None, end: int | None = None,
           step: int = 1) -> Tensor:  # fmt: skip
    dim = dim % values.ndim
    return values[(slice(None),) * dim + (slice(start, end, step),)]


def _index(values: Tensor, indices: list[Tensor | None]) -> Tensor:
    return values[tuple(slice(None) if each is None else each for each in indices)]


def _index_put(values: Tensor, indices: list[Tensor | None], new: Tensor, accumulate: bool = False) -> Tensor:
    if accumulate:
        raise RuntimeError("index_put with accumulate is not supported")
    changed = values.clone()
    changed[tuple(slice(None) if each is None else each for each in indices)] = new
    return changed


def _factors(scales: Sequence[Any]) -> list[float] | None:
    # One list, or a factor for each axis, by the version of PyTorch.
    flat = scales[0] if scales and isinstance(scales[0], list) else list(scales)
    return None if not flat or None in flat else flat


def _upsample_nearest2d(values: Tensor, size: list[int] | None, *scales: Any) -> Tensor:
    factors = _factors(scales)  # which decide the size, where both are given
    return torch._C._nn.upsample_nearest2d(values, None if factors else size, factors)


def _upsample_bilinear2d(values: Tensor, size: list[int] | None, align: bool, *scales: Any) -> Tensor:
    factors = _factors(scales)
    return torch._C._nn.upsample_bilinear2d(values, None if factors else size, align, factors)


# While a graph is traced, sizes are tensors: a number would be a constant of the graph.


def _to_int(value: Any) -> Any:
    traced = isinstance(value, Tensor) and torch.jit.is_tracing()
    return value.to(torch.int64) if traced else int(value)


def _to_float(value: Any) -> Any:
    traced = isinstance(value, Tensor) and torch.jit.is_tracing()
    return value.to(torch.float32) if traced else float(value)


def _floor(value: Any) -> Any:
    return torch.floor(value).to(torch.int64) if isinstance(value, Tensor) else math.floor(value)


def _to_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value)


def _bound(name: str) -> Callable[..., Any]:
    for owner in (torch, torch.Tensor, torch._C._nn):
        found = getattr(owner, name, None)
        if found is not None:
            return found
    raise AssertionError(name)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    **{name: _bound(name) for name in _TENSOR_OPERATORS.split()},
    "convert": lambda values, like: values.to(like),
    "item": operator.getitem,
    "slice": _slice,
    "upsample_nearest2d": _upsample_nearest2d,
    "upsample_bilinear2d": _upsample_bilinear2d,
    "index": _index,
    "index_put": _index_put,
    "number_add": operator.add,
    "number_sub": operator.sub,
    "number_mul": operator.mul,
    "number_div": operator.truediv,
    "number_floordiv": operator.floordiv,
    "number_remainder": operator.mod,
    "number_neg": operator.neg,
    "number_floor": _floor,
    "int_of": _to_int,
    "float_of": _to_float,
    "tensor_of": _to_tensor,
}
"""By name: what takes the arguments of TorchScript's operator of that name, in its order."""


@dataclass(frozen=True)
class Reference:
    """An argument of a call: the program's input or the result of an earlier call, counted from 0."""

    index: int


@dataclass(frozen=True)
class Weight:
    """An argument of a call: a stored tensor."""

    name: str


@dataclass(frozen=True)
class Call:
    """One operator, whose result is the next value.

    Attributes:
        operator: a name of `OPERATORS`.
        arguments: numbers, dtypes, None, `Reference`, `Weight`, or lists of these.
        keywords: the same by name.
    """

    operator: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class TensorProgram(nn.Module):
    """Runs a program's calls; its state has the archive's names."""

    def __init__(
        self, inputs: int, calls: Sequence[Call], result: int, weights: Mapping[str, Tensor]
    ) -> None:
        """Check that the calls use known operators, and values that are known before them.

        Raises:
            ValueError: they do not.
        """
        super().__init__()
        self.inputs, self.calls, self.result = inputs, tuple(calls), result
        self._weights = dict(weights)
        for name, tensor in weights.items():
            _register(self, name, tensor)
        for index, call in enumerate(self.calls):
            if call.operator not in OPERATORS:
                raise ValueError(f"the operator {call.operator} is unknown")
            self._check((*call.arguments, *call.keywords.values()), inputs + index)
        self._check((Reference(result),), inputs + len(self.calls))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the calls on the program's inputs."""
        values: list[Any] = list(inputs)
        for call in self.calls:
            arguments = [self._value(argument, values) for argument in call.arguments]
            keywords = {name: self._value(argument, values) for name, argument in call.keywords.items()}
            values.append(OPERATORS[call.operator](*arguments, **keywords))
        return values[self.result]

    def _value(self, argument: Any, values: Sequence[Any]) -> Any:
        if isinstance(argument, Reference):
            return values[argument.index]
        if isinstance(argument, Weight):
            return self.get_buffer(argument.name)
        if isinstance(argument, list):
            return [self._value(each, values) for each in argument]
        return argument

    def _check(self, arguments: Sequence[Any], known: int) -> None:
        for argument in arguments:
            if isinstance(argument, list):
                self._check(argument, known)
            elif isinstance(argument, Reference) and not 0 <= argument.index < known:
                raise ValueError(f"the value {argument.index} is used before it is made")
            elif isinstance(argument, Weight) and argument.name not in self._weights:
                raise ValueError(f"the weight {argument.name} is missing")

    def save(self, folder: Path) -> None:
        """Write the program's two files."""
        calls = [
            [call.operator, _encode(list(call.arguments)), _encode(dict(call.keywords))]
            for call in self.calls
        ]
        program = {"inputs": self.inputs, "result": self.result, "calls": calls}
        save_file({name: tensor.contiguous() for name, tensor in self._weights.items()}, folder / WEIGHTS)
        (folder / PROGRAM).write_text(json.dumps(program))

    @classmethod
    def load(cls, folder: Path) -> TensorProgram:
        """Read the program's two files, which may come from anywhere.

        Raises:
            InputError: they are not what :meth:`save` writes.
        """
        stored = read_json(folder / PROGRAM, InputError, limit_bytes=PROGRAM_LIMIT_BYTES)
        try:
            calls = [
                Call(str(name), tuple(_decode(arguments)), _named(keywords))
                for name, arguments, keywords in stored["calls"]
            ]
            weights = load_file(folder / WEIGHTS)
            return cls(int(stored["inputs"]), calls, int(stored["result"]), weights).eval()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{folder / PROGRAM} is no program of tensor operations ({error})") from error


def _register(module: nn.Module, name: str, tensor: Tensor) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]  # type: ignore[assignment]
    module.register_buffer(last, tensor)


def _encode(value: Any) -> Any:
    if isinstance(value, Reference):
        return {"value": value.index}
    if isinstance(value, Weight):
        return {"weight": value.name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, dict):
        return {name: _encode(each) for name, each in value.items()}
    return [_encode(each) for each in value] if isinstance(value, list) else value


def _named(keywords: dict[str, Any]) -> dict[str, Any]:
    return {str(name): _decode(value) for name, value in keywords.items()}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(each) for each in value]
    if not isinstance(value, dict):
        return value
    kind, content = next(iter(value.items()))
    if kind == "value":
        return Reference(int(content))
    if kind == "weight":
        return Weight(str(content))
    if kind == "dtype":
        return _DTYPES[content]
    raise ValueError(f"{kind!r} is no kind of argument")
