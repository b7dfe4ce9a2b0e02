"""Small graphs and numbers for the tests of the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper

Agrees = Callable[..., Any]
RANDOM = np.random.default_rng(0)
EXACTLY = 0.0


def node(operator: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node whose inputs and outputs are told as words; "-" is an input that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    results = outputs.split()
    domain = "com.microsoft" if operator == "MultiHeadAttention" else ""
    return helper.make_node(operator, names, results, f"/{results[0]}", domain=domain, **attributes)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)
