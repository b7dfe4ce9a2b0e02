"""Exponential and error function as plain arithmetic, which LLVM turns into vector instructions.

TVM would call the C library's `expf` and `erff` once for every element.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

# exp(r) for |r| <= ln(2)/2, and ln(2) in two parts: S. L. Moshier, Cephes, single/expf.c.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOG2_E = 1.44269504088896341
_EXP_LIMITS = (-87.3, 88.3)  # beyond, the result is not a normal float32
# erf(x) = x P(x^2) / Q(x^2) for |x| <= 4: the rational approximation of Eigen's `generic_fast_erf_float`
# (MPL 2.0 there; the coefficients are facts), within 5e-7 of the true value.
_ERF_LIMIT = 4.0
_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip


def number(value: float) -> Any:
    """A float32 constant."""
    return tirx.const(value, "float32")


def identity(x: Any) -> Any:
    """x itself."""
    return x


def exp_of(x: Any) -> Any:
    """e^x of a float32 expression, within 2 units in the last place; x is clamped to normal results."""
    x = clamp(x, *_EXP_LIMITS)
    whole = tirx.floor(x * number(_LOG2_E) + number(0.5))
    rest = x - whole * number(_LN2_HIGH) - whole * number(_LN2_LOW)
    power = polynomial(rest, _EXP)
    mantissa = power * (rest * rest) + rest + number(1.0)
    exponent = (whole.astype("int32") + tirx.const(127, "int32")) << tirx.const(23, "int32")
    return mantissa * tirx.reinterpret("float32", exponent)


def sigmoid_of(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return number(1.0) / (number(1.0) + exp_of(number(0.0) - x))


def silu_of(x: Any) -> Any:
    """x / (1 + e^-x)."""
    return x / (number(1.0) + exp_of(number(0.0) - x))


def erf_of(x: Any) -> Any:
    """The error function."""
    x = clamp(x, -_ERF_LIMIT, _ERF_LIMIT)
    square = x * x
    return x * polynomial(square, _ERF_P) / polynomial(square, _ERF_Q)


def clamp(x: Any, low: float, high: float) -> Any:
    """x within two limits; unlike TVM's minimum and maximum it propagates NaN."""
    return tirx.Select(x > number(high), number(high), tirx.Select(x < number(low), number(low), x))


def polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    """A polynomial by Horner's scheme, its coefficients from the highest power down."""
    result = number(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + number(coefficient)
    return result


def quantized_of(x: Any, scale: float, zero_point: int) -> Any:
    """A real value as int8, rounding half to even, as ONNX's QuantizeLinear does."""
    whole = tirx.nearbyint(x / number(scale)) + number(float(zero_point))
    return tirx.max(tirx.min(whole, number(127.0)), number(-128.0)).astype("int8")


def dequantized_of(q: Any, scale: float, zero_point: int) -> Any:
    """The real value of an int8, as ONNX's DequantizeLinear computes it."""
    return (q.astype("int32") - tirx.const(zero_point, "int32")).astype("float32") * number(scale)
