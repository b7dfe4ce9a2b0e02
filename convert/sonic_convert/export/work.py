"""Counts a submodel's operations and measures its memory, as functions of its sizes.

The counts go into the bundle's manifest, so that ``sonic estimate`` can compute what a clip costs without
running it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sonic.bundle.work import Terms, term_value
from sonic_convert.export.call_memory import measure_calls
from sonic_convert.export.dimensions import Dimensions
from sonic_convert.export.submodels import Sizes, Submodel

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flop(query: Sequence[int], key: Sequence[int], value: Sequence[int],
                    *_: Any, **__: Any) -> int:  # fmt: skip
    """For shapes (batch, heads, positions, width): queries times keys, then scores times values."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def count_flop(submodel: Submodel, module: nn.Module, dimensions: Dimensions) -> dict[str, Terms]:
    """Floating-point operations of one call by kind, exact for every size.

    The module runs once for each of the table's `work_sizes`, under PyTorch's counter (convolutions,
    matrix products and attention; normalisations and activations are less than a hundredth of these).
    """
    counts: list[dict[str, float]] = []
    for sizes in submodel.work_sizes:
        counter = FlopCounterMode(display=False, custom_mapping={_ATTENTION: _attention_flop})
        with torch.inference_mode(), counter:
            module(*submodel.example(dimensions, sizes).values())
        found: dict[str, float] = {}
        for operator, flop in counter.get_flop_counts()["Global"].items():
            name = str(operator)
            kind = next((kind for kind in ("attention", "convolution") if kind in name), "linear")
            found[kind] = found.get(kind, 0.0) + flop
        counts.append(found)
    kinds = sorted({kind for found in counts for kind in found})
    return {
        kind: fit(submodel.work_terms, submodel.work_sizes, [c.get(kind, 0.0) for c in counts])
        for kind in kinds
    }


def fit(terms: Sequence[str], sizes: Sequence[Sizes], values: Sequence[float]) -> dict[str, float]:
    """Non-negative coefficients with which the terms fit the values, by least squares of relative errors."""
    scale = 1 / np.maximum(np.asarray(values, float), 1.0)
    rows = np.array([[term_value(term, axes) for term in terms] for axes in sizes], float)
    columns = rows.max(axis=0)  # scaled to one magnitude, or the solver loses the small ones
    solved, _ = nnls(rows / columns * scale[:, None], np.asarray(values, float) * scale)
    return {
        term: float(share / column)
        for term, share, column in zip(terms, solved, columns, strict=True)
        if share > 1e-9 * max(values)
    }


class NamedShape(Protocol):
    """An input as the table or a manifest describes it; a dynamic axis has a name in place of a size."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int | str, ...]: ...


def measure_memory(
    graph: Path, submodel: Submodel, inputs: Sequence[NamedShape]
) -> tuple[int, dict[str, float]]:
    """Bytes that the loaded graph holds, and bytes of one call on top, measured in a separate process.

    Where the system does not let a process measure itself (not Linux, or a container that forbids it), the
    first is the size of the weights on disk, and the second is unknown: an empty polynomial.

    Raises:
        SonicError: the process failed.
    """
    shapes = [
        {
            tensor.name: [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
            for tensor in inputs
        }
        for sizes in submodel.memory_sizes
    ]
    memory = measure_calls(graph, shapes)
    if memory is None:
        return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*")), {}
    values = [max(peak - memory.loaded_bytes, 0) for peak in memory.call_bytes]
    terms = tuple(dict.fromkeys((submodel.work_terms[0], "1")))
    return memory.loaded_bytes - memory.start_bytes, fit(terms, submodel.memory_sizes, values)
