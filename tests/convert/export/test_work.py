"""Counted work and measured memory: exact at sizes that nothing was fitted to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.work import evaluate
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.export.call_memory import _PROBE
from sonic_convert.export.dimensions import read_dimensions
from sonic_convert.export.submodels import SUBMODELS, picture_sizes, unet_sizes
from sonic_convert.export.work import count_flop, fit, measure_memory

UNSEEN = {
    "audio2token": {"frames": 11},
    "audio2bucket": {"frames": 7},
    "vae_encoder": picture_sizes(192, 128),
    "vae_decoder": picture_sizes(24, 16, 5),
    "unet": unet_sizes(2, 5, 16, 24),
    "frame_interpolator": picture_sizes(192, 64),
    "face_detector": picture_sizes(416, 448),
}


@pytest.mark.parametrize("submodel", SUBMODELS, ids=lambda submodel: submodel.name)
def test_the_counts_hold_at_other_sizes(submodel: Any, small) -> None:
    checkpoint = Checkpoint.open(small.checkpoint)
    dimensions, module = read_dimensions(checkpoint), submodel.build(checkpoint)
    sizes = UNSEEN.get(submodel.name, {})
    work = read_manifest(small.bundle).submodels[submodel.name].work
    assert work is not None
    expected = _count_once(submodel, module, dimensions, sizes)
    assert sum(work.flop_of(sizes).values()) == pytest.approx(expected, rel=1e-6)
    peak_bytes = work.weight_bytes + evaluate(work.activation_bytes, sizes)
    assert work.weight_bytes > 0 and peak_bytes > work.weight_bytes


def test_without_the_right_to_measure_the_weights_size_is_known(small, monkeypatch) -> None:
    submodel = next(submodel for submodel in SUBMODELS if submodel.name == "audio2token")
    graph = small.bundle / submodel.name / "model.onnx"
    forbidden = _PROBE.replace("/proc/self/clear_refs", "/nowhere/clear_refs")
    monkeypatch.setattr("sonic_convert.export.call_memory._PROBE", forbidden)
    inputs = submodel.inputs(read_dimensions(Checkpoint.open(small.checkpoint)))
    assert measure_memory(graph, submodel, inputs) == (graph.stat().st_size, {})


def _count_once(submodel: Any, module: torch.nn.Module, dimensions: Any, sizes: dict[str, int]) -> float:
    from dataclasses import replace

    once = count_flop(replace(submodel, work_terms=("1",), work_sizes=(sizes,)), module, dimensions)
    return sum(terms["1"] for terms in once.values() if terms)


@given(
    st.lists(st.floats(0, 1e6), min_size=3, max_size=3).filter(lambda c: max(c) > 1),
    st.integers(0, 1000),
)
def test_a_polynomial_is_found_again(coefficients: list[float], seed: int) -> None:
    terms = ("a*b", "a*a*b", "1")
    truth = dict(zip(terms, coefficients, strict=True))
    generator = np.random.default_rng(seed)
    sizes = [{"a": int(a), "b": int(b)} for a, b in generator.integers(1, 40, (6, 2))]
    sizes += [{"a": 1, "b": 1}, {"a": 2, "b": 5}, {"a": 30, "b": 2}]
    found = fit(terms, sizes, [evaluate(truth, axes) for axes in sizes])
    for axes in ({"a": 3, "b": 7}, {"a": 50, "b": 1}):
        assert evaluate(found, axes) == pytest.approx(evaluate(truth, axes), rel=1e-4, abs=1e-3)
