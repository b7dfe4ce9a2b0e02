"""Which function of the kernel library a convolution becomes, or that it stays with TVM.

What the Arm Compute Library refuses is known from its `validate`; the bridge asks that again on the target.
The first rule that holds counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TVM = "tvm"
#: Winograd's weights take (6/3)^2 = 4 times the memory; with more of them than this that outweighs the time.
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
    """What a convolution becomes, and why."""

    holds: Callable[[Convolution], bool]
    function: str
    reason: str


RULES = (
    Rule(lambda c: c.groups != 1, TVM, "the library has no grouped convolution"),
    Rule(lambda c: c.dilations != (1, 1), TVM, "the bridge has no dilation"),
    Rule(
        lambda c: (
            c.kernel == (3, 3)
            and c.strides == (1, 1)
            and max(c.pads) <= 3  # with more the library's Winograd gives no numbers, without a word
            and min(c.size) > 4
            and c.inputs > 64  # up to there the bridge chooses it itself
            and c.inputs * c.outputs <= _WINOGRAD_WEIGHTS
        ),
        "winograd_convolution2d",
        "3.6 times fewer instructions, with an error of up to 5e-6 of the output in place of 4e-7",
    ),
    Rule(lambda c: True, "convolution2d", "a matrix product, or Winograd where its error is 2e-6 at most"),
)


def function_of(convolution: Convolution) -> str:
    """The function of the kernel library, or `TVM`."""
    return next(rule.function for rule in RULES if rule.holds(convolution))
