"""Scales and integers: the linear quantization that ONNX's QuantizeLinear defines.

``q = saturate(round(x / scale) + zero_point)``, and back ``x = (q - zero_point) * scale``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1e-12


@dataclass(frozen=True)
class Affine:
    """Scale and zero point of a quantized tensor; the zero point's dtype is that of the integers."""

    scale: np.float32
    zero_point: np.ndarray

    def simulate(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values after quantizing and dequantizing."""
        limits = np.iinfo(self.zero_point.dtype)
        zero = np.float32(self.zero_point)
        quantized = np.clip(np.rint(values / self.scale) + zero, limits.min, limits.max)
        return (quantized - zero) * self.scale


@dataclass(frozen=True)
class IntegerWeight:
    """A weight in eight bits, symmetric.

    Attributes:
        values: int8, -127..127.
        scales: float32, (outputs,), or () for one scale of the whole tensor.
        axis: of the output channels.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int

    @property
    def floats(self) -> NDArray[np.float32]:
        """The dequantized values, float32."""
        return self.values * _along(self.scales, self.axis, self.values.ndim)


def affine(low: float, high: float, signed: bool, symmetric: bool = False) -> Affine:
    """Scale and zero point for a range that holds zero.

    Args:
        low, high: the range, low <= 0 <= high.
        signed: int8, which aarch64's kernels need; otherwise uint8, which x86's need.
        symmetric: zero point 0 of int8, or 128 of uint8.
    """
    dtype = np.int8 if signed else np.uint8
    limits = np.iinfo(dtype)
    if symmetric:
        scale = max(-low, high, _SMALLEST) / 127
        return Affine(np.float32(scale), np.array(0 if signed else 128, dtype))
    scale = max(high - low, _SMALLEST) / 255
    zero = int(np.clip(np.rint(limits.min - low / scale), limits.min, limits.max))
    return Affine(np.float32(scale), np.array(zero, dtype))


def quantize_weight(
    weight: NDArray[np.float32],
    axis: int,
    per_channel: bool = True,
    smallest_scales: NDArray[np.float32] | None = None,
) -> IntegerWeight:
    """Symmetric eight-bit integers, with a scale for every output channel or one for all.

    `smallest_scales`, (outputs,), are lower bounds of the scales.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis) if per_channel else None
    scales = (np.maximum(np.abs(weight).max(axis=others), _SMALLEST) / 127).astype(np.float32)
    if smallest_scales is not None:
        floor = smallest_scales if per_channel else smallest_scales.max()
        scales = np.maximum(scales, floor).astype(np.float32)
    values = np.rint(weight / _along(scales, axis, weight.ndim))
    return IntegerWeight(np.clip(values, -127, 127).astype(np.int8), scales, axis)


def _along(scales: NDArray[np.float32], axis: int, ndim: int) -> NDArray[np.float32]:
    if not scales.ndim:
        return scales
    shape = [1] * ndim
    shape[axis] = -1
    return scales.reshape(shape)
