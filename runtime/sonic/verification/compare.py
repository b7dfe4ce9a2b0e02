"""Measuring how far apart two arrays are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PSNR_OF_EQUAL_DB = 100.0  # stands for infinity, so that means and JSON stay finite


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference, relative L2 (norm of the difference over the reference's), and cosine."""

    max_abs: float
    relative_l2: float
    cosine: float


def compare(array: np.ndarray, reference: np.ndarray) -> Difference:
    """Compare two arrays of the same shape, in float64.

    Raises:
        ValueError: the shapes differ.
    """
    if array.shape != reference.shape:
        raise ValueError(f"shapes {array.shape} and {reference.shape} differ")
    a, r = array.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    norm_a, norm_r = np.linalg.norm(a), np.linalg.norm(r)
    gap = np.linalg.norm(a - r)
    relative = gap / norm_r if norm_r else (0.0 if gap == 0 else np.inf)
    cosine = float(a @ r / (norm_a * norm_r)) if norm_a and norm_r else float(gap == 0)
    return Difference(float(np.abs(a - r).max(initial=0.0)), float(relative), cosine)


def psnr_db(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio (dB) of 8-bit values; equal pictures give `PSNR_OF_EQUAL_DB`."""
    if mean_squared_error <= 0:
        return PSNR_OF_EQUAL_DB
    return min(PSNR_OF_EQUAL_DB, float(10 * np.log10(255.0**2 / mean_squared_error)))
