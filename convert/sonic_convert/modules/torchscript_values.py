"""Values and operators of TorchScript graphs, as :mod:`.torchscript_follower` evaluates them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class RefusedError(Exception):
    """The archive cannot be read; the message ends a sentence that starts with its name."""


@dataclass(eq=False)
class Value:
    """A number, tensor or string, and which of the program's values it is, if it depends on the inputs.

    Programs write into nothing: what TorchScript writes into becomes another value. A tensor that is a part
    of another remembers it in `view`, so that both stay the same.
    """

    concrete: Any
    index: int | None = None
    view: View | None = None
    version: int = 0


@dataclass(frozen=True, eq=False)
class View:
    """How a tensor was made from `base`, when that had been written into `version` times."""

    base: Value
    operator: str
    arguments: list[Any]
    version: int


@dataclass(frozen=True)
class Object:
    """A module of the archive, and the path of its attributes."""

    module: Any
    path: str


def concrete(value: Any) -> Any:
    """What a value is for the picture that is followed; lists hold values."""
    if isinstance(value, list):
        return [concrete(each) for each in value]
    return value.concrete if isinstance(value, Value) else value


def index_of(value: Any) -> int | None:
    """Which of the program's values it is; None for constants and everything that is no value."""
    return value.index if isinstance(value, Value) else None


def depends(value: Any) -> bool:
    """Whether a value, or one in a list, depends on the inputs."""
    return any(map(depends, value)) if isinstance(value, list) else index_of(value) is not None


def share_memory(a: Any, b: Any) -> bool:
    """Whether writing into one of two tensors may change the other."""
    return isinstance(a, Tensor) and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def last_line(error: BaseException) -> str:
    """The end of an error's message, which in PyTorch says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]


DTYPE_NUMBERS = {
    torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4, torch.float16: 5,
    torch.float32: 6, torch.float64: 7, torch.bool: 11, torch.bfloat16: 15,
}  # fmt: skip
#: The operator of numbers, and the program's if its result may depend on sizes.
NUMBERS: dict[str, tuple[Callable[..., Any], str | None]] = {
    "add": (operator.add, "number_add"),
    "sub": (operator.sub, "number_sub"),
    "mul": (operator.mul, "number_mul"),
    "div": (operator.truediv, "number_div"),
    "floordiv": (operator.floordiv, "number_floordiv"),
    "remainder": (operator.mod, "number_remainder"),
    "neg": (operator.neg, "number_neg"),
    "pow": (operator.pow, None),
    "sqrt": (math.sqrt, None),
    "floor": (math.floor, "number_floor"),
    "ceil": (math.ceil, None),
    "eq": (operator.eq, None),
    "ne": (operator.ne, None),
    "lt": (operator.lt, None),
    "le": (operator.le, None),
    "gt": (operator.gt, None),
    "ge": (operator.ge, None),
    "__not__": (operator.not_, None),
    "__is__": (operator.is_, None),
    "__isnot__": (operator.is_not, None),
    "__and__": (operator.and_, None),
    "__or__": (operator.or_, None),
    "__contains__": (operator.contains, None),
    "__derive_index": (lambda index, start, step: start + index * step, None),
    "__range_length": (lambda start, end, step: len(range(start, end, step)), None),
    "is_floating_point": (torch.is_floating_point, None),
}
_SPECIAL_NAMES = """
    append __getitem__ __setitem__ len extend size dim numel Int Float IntImplicit FloatImplicit
    ScalarImplicit item Bool to type_as float _to_copy detach alias dropout lift_fresh list _convolution
    empty_like warn format
"""
SPECIAL = frozenset(_SPECIAL_NAMES.split())
WRITES = ("copy", "fill", "zero")  # beside operators whose results are written into their first argument
_VIEWS_NAMES = """
    slice select view reshape permute transpose t flatten contiguous expand expand_as unsqueeze squeeze
    narrow split split_with_sizes chunk unbind
"""
VIEWS = frozenset(_VIEWS_NAMES.split())
# In branches of torch.nn.functional's own code, which is inlined whole; refused where they are reached.
UNREACHED = ("upsample_", "_upsample_", "adaptive_avg_pool")
_STRUCTURE_NAMES = """
    If Loop Constant GetAttr SetAttr ListConstruct TupleConstruct ListUnpack TupleUnpack TupleIndex
    RaiseException NumToTensor dtype device min max unchecked_cast data Uninitialized Print
"""
STRUCTURE = frozenset(f"prim::{name}" for name in _STRUCTURE_NAMES.split())
