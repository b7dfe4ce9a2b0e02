"""Chooses the function of the kernel library that computes a convolution, or TVM.

What the Arm Compute Library does not support is known from its `validate`; the bridge calls that again on the
target. The first rule that applies counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TVM = "tvm"
#: Winograd's weights take (6/3)^2 = 4 times the memory; for more weights than this, it is not worth the time.
_WINOGRAD_WEIGHTS = 640 * 640


@dataclass(frozen=True)
class Convolution:
    """A two-dimensional convolution.

    Attributes:
        inputs, outputs: channels.
        kernel, strides, dilations: of rows and columns.
        pads: top, left, bottom, right.
        groups: of channels.
        size: height and width of the input.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int
    size: tuple[int, int]

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        top, left, bottom, right = self.pads
        return (
            (self.size[0] + top + bottom - self.kernel[0]) // self.strides[0] + 1,
            (self.size[1] + left + right - self.kernel[1]) // self.strides[1] + 1,
        )


@dataclass(frozen=True)
class Rule:
    """A choice for the convolutions that it applies to, with its reason."""

    applies: Callable[[Convolution], bool]
    function: str
    reason: str


RULES = (
    Rule(lambda c: c.groups != 1, TVM, "the library has no grouped convolution"),
    Rule(lambda c: c.dilations != (1, 1), TVM, "the bridge has no dilation"),
    Rule(
        lambda c: (
            c.kernel == (3, 3)
            and c.strides == (1, 1)
            and max(c.pads) <= 3  # with more, the library's Winograd silently returns NaN
            and min(c.size) > 4
            and c.inputs > 64  # up to 64 the bridge chooses Winograd itself
            and c.inputs * c.outputs <= _WINOGRAD_WEIGHTS
        ),
        "winograd_convolution2d",
        "3.6 times fewer instructions, with an error of up to 5e-6 of the output in place of 4e-7",
    ),
    Rule(lambda c: True, "convolution2d", "a matrix product, or Winograd where its error is at most 2e-6"),
)


def function_of(convolution: Convolution) -> str:
    """The function of the kernel library, or `TVM`."""
    return next(rule.function for rule in RULES if rule.applies(convolution))
