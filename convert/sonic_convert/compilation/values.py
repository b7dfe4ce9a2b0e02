"""The values of a graph while it is lowered: constants, and tensors that the program will compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te
from tvm.ir import StringImm

from sonic_convert.compilation.layout import Layout


@dataclass(frozen=True)
class Quantization:
    """An integer q represents ``(q - zero_point) * scale``."""

    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor that is computed when the program runs.

    Attributes:
        expression: the Relax variable, of the layout's stored shape.
        layout: logical shape and order in memory.
        dtype: NumPy's name of its type.
        quantization: of integers that represent real values.
        integers: the quantized tensor that real values were dequantized from.
    """

    expression: Any
    layout: Layout
    dtype: str = "float32"
    quantization: Quantization | None = None
    integers: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape, which the graph specifies."""
        return self.layout.shape


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """A constant of integers, which represent ``values * scales``.

    Attributes:
        values: int8, or int32 for a bias.
        scales: one, or one for every entry of `axis`.
        axis: of `values`.
    """

    values: np.ndarray
    scales: np.ndarray
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return self.values.shape

    def real(self) -> np.ndarray:
        """The real values, float32."""
        shape = [1] * self.values.ndim
        if self.scales.size > 1:
            shape[self.axis] = -1
        return self.values.astype(np.float32) * self.scales.astype(np.float32).reshape(shape)


Value = np.ndarray | Tensor | QuantizedConstant


class Emitter:
    """Appends operations to a Relax function, keeping track of layouts."""

    def __init__(self, builder: relax.BlockBuilder) -> None:
        self.builder = builder

    def emit(self, expression: Any) -> Any:
        """A variable for an expression."""
        return self.builder.emit(expression)

    def reshape(self, expression: Any, old: Sequence[int], new: Sequence[int]) -> Any:
        """An expression with another shape over the same memory."""
        if tuple(old) == tuple(new):
            return expression
        return self.emit(relax.op.reshape(expression, list(new)))

    def ordered(self, value: Value, order: Sequence[int]) -> Tensor:
        """A tensor stored in `order`; memory is moved only where necessary."""
        order = tuple(order)
        if isinstance(value, QuantizedConstant):
            value = value.real()
        if not isinstance(value, Tensor):
            array = np.asarray(np.transpose(value, order), order="C")
            layout = Layout(value.shape, order)
            return Tensor(relax.const(array, array.dtype.name), layout, array.dtype.name)
        layout = value.layout.with_order(order)
        if value.layout.order == order:
            return value
        if value.layout.same_memory(order):
            expression = self.reshape(value.expression, value.layout.stored_shape, layout.stored_shape)
        else:
            permutation = list(value.layout.permutation_to(order))
            expression = self.emit(relax.op.permute_dims(value.expression, permutation))
        return Tensor(expression, layout, value.dtype, value.quantization)

    def plain(self, value: Value) -> Tensor:
        """A tensor stored in the order of its logical axes."""
        return self.ordered(value, range(len(value.shape)))

    def reshaped(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """The tensor after a Reshape to a logical shape."""
        layout = value.layout.reshaped(shape)
        if layout is None:
            value = self.plain(value)
            layout = Layout.plain(shape)
        expression = self.reshape(value.expression, value.layout.stored_shape, layout.stored_shape)
        return Tensor(expression, layout, value.dtype, value.quantization)

    def transposed(self, value: Tensor, permutation: Sequence[int]) -> Tensor:
        """The tensor after a Transpose, over the same memory."""
        return Tensor(value.expression, value.layout.transposed(permutation), value.dtype)

    def as_rows(self, value: Tensor, last: int) -> tuple[Any, Tensor, int]:
        """A tensor as a matrix whose rows run along its logical axis `last`.

        Returns:
            The expression of (rows, size of `last`), the tensor in the order of the rows, and their number.
        """
        last %= len(value.shape)
        if value.layout.order[-1] != last:
            rest = [axis for axis in value.layout.order if axis != last]
            value = self.ordered(value, [*rest, last])
        size = value.shape[last]
        rows = int(np.prod(value.layout.stored_shape[:-1], dtype=np.int64))
        return self.reshape(value.expression, value.layout.stored_shape, (rows, size)), value, rows

    def from_rows(self, expression: Any, like: Tensor, size: int, dtype: str = "float32") -> Tensor:
        """Rows of `size` elements as a tensor in the order of `like`, whose last stored axis they replace."""
        rows = int(np.prod(like.layout.stored_shape[:-1], dtype=np.int64))
        layout = self.layout_of_rows(like, size)
        return Tensor(self.reshape(expression, (rows, size), layout.stored_shape), layout, dtype)

    def layout_of_rows(self, like: Tensor, size: int) -> Layout:
        """The layout of `like` with another size of the last stored axis."""
        shape = list(like.shape)
        shape[like.layout.order[-1]] = size
        return Layout(tuple(shape), like.layout.order)

    def elementwise(self, formula: Callable[[Any], Any], expression: Any, name: str) -> Any:
        """Apply a formula of `elementary` to every element of a tensor."""

        def compute(x: Any) -> Any:
            return te.compute(x.shape, lambda *indices: formula(x(*indices)), name=name)

        return self.builder.emit_te(compute, expression, primfunc_name_hint=name)

    def program(self, kernel: Any, name: str, inputs: Sequence[Any], shape: Sequence[int], dtype: str) -> Any:
        """Call a hand-written loop nest."""
        function = self.builder.add_func(kernel, name)
        return self.emit(relax.call_tir(function, list(inputs), relax.TensorType(list(shape), dtype)))

    def library(
        self, name: str, arguments: Sequence[Any], shape: Sequence[int], dtype: str = "float32"
    ) -> Any:
        """Call a function of the kernel library; Python's numbers and strings become its scalars."""
        wrapped = [_scalar(argument) for argument in arguments]
        result = relax.TensorType(list(shape), dtype)
        return self.emit(relax.call_dps_packed(f"sonic.acl.{name}", relax.Tuple(wrapped), result))


def _scalar(argument: Any) -> Any:
    if isinstance(argument, str):
        return StringImm(argument)
    return relax.prim_value(argument) if isinstance(argument, int | float) else argument
