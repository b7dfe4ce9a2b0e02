"""Finds NaN and infinity in weights, without a copy of them in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from sonic.errors import InputError


def check_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Check that all values of tensors are numbers.

    Raises:
        InputError: a tensor has values that are NaN or infinite; the first one is named.
    """
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        first = tensors[bad[0]]
        count = int((~torch.isfinite(first)).sum())
        others = f", and {len(bad) - 1} other tensors hold some" if len(bad) > 1 else ""
        raise InputError(
            f"{path}: the tensor {bad[0]} holds NaN or infinity in {count:,} of its {first.numel():,} "
            f"values{others}; weights should be finite numbers (the file is damaged, or training diverged)"
        )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity: its extremes have, and they take one pass."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)  # eight bits, for which there are no extremes
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())
