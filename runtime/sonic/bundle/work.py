"""How much a submodel computes and how much memory it takes, as polynomials in its dynamic axes.

A term is a product of axis names: {"batch*frames*height*width": 12.5, "1": 3.0} means 12.5 for every
position plus a constant 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval
from pydantic import AfterValidator

from sonic.records import TOLERANT

_MOST_FACTORS = 8  # of a term; with more, the number of operations would exceed what a float holds


def _bounded(term: str) -> str:
    if term.count("*") >= _MOST_FACTORS:
        raise ValueError(f"{term[:60]!r} has more than {_MOST_FACTORS} factors")
    return term


Terms = Mapping[Annotated[str, AfterValidator(_bounded)], Annotated[float, Interval(ge=-1e18, le=1e18)]]


def evaluate(terms: Terms, sizes: Mapping[str, int]) -> float:
    """The polynomial's value for these axis sizes.

    Raises:
        KeyError: a term names an axis that is not in `sizes`.
    """
    return sum(coefficient * term_value(term, sizes) for term, coefficient in terms.items())


def term_value(term: str, sizes: Mapping[str, int]) -> int:
    """The product of a term's axes; 1 for the term "1"."""
    return math.prod(sizes[axis] for axis in term.split("*") if axis != "1")


@dataclass(frozen=True)
class Work:
    """The work of one call of a submodel.

    Attributes:
        flop: floating-point operations, two for each multiply-add, by kind of operator: "convolution",
            "linear", "attention".
        activation_bytes: a call's peak memory besides the weights, as measured with ONNX Runtime when
            the bundle was made.
        weight_bytes: memory of the loaded weights.
    """

    __pydantic_config__ = TOLERANT

    flop: Mapping[str, Terms] = field(default_factory=dict)
    activation_bytes: Terms = field(default_factory=dict)
    weight_bytes: Annotated[int, Interval(ge=0, le=1 << 48)] = 0

    @property
    def axes(self) -> set[str]:
        """The axes that any term names."""
        terms = [*self.activation_bytes, *(term for kind in self.flop.values() for term in kind)]
        return {axis for term in terms for axis in term.split("*")} - {"1"}

    def flop_of(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Floating-point operations of one call, by kind of operator."""
        return {kind: evaluate(terms, sizes) for kind, terms in self.flop.items()}
