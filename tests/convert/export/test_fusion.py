"""Fused graphs compute what the simplified ones do, and hold no attention scores."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import onnxsim
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sonic_convert.export.fusion import fuse

WITH_ATTENTION = {"unet": 27, "vae_encoder": 1, "vae_decoder": 0, "image_encoder": 2, "audio_encoder": 2}
# Cross-attentions whose projections went into the audio tokens: as many scores as tokens, not positions.
OVER_FEW_TOKENS = {"unet": 13}


class Attention(torch.nn.Module):
    """Multi-head attention as this project's modules write it."""

    def __init__(self, heads: int, width: int, scale: float | None, flat: bool) -> None:
        super().__init__()
        self.heads, self.scale, self.flat = heads, scale, flat
        channels = heads * width
        self.to_q, self.to_k, self.to_v, self.to_out = (torch.nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        query, key, value = self.to_q(x), self.to_k(context), self.to_v(context)
        batch, positions, channels = query.shape
        query, key, value = (
            y.reshape(y.shape[0], y.shape[1], self.heads, channels // self.heads).transpose(1, 2)
            for y in (query, key, value)
        )
        y = functional.scaled_dot_product_attention(query, key, value, scale=self.scale).transpose(1, 2)
        y = y.reshape(batch * positions, channels) if self.flat else y.reshape(batch, positions, channels)
        return self.to_out(y)


def exported(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    file = io.BytesIO()
    axes = {"x": {0: "batch", 1: "positions"}, "context": {0: "batch", 1: "tokens"}}
    torch.onnx.export(module, inputs, file, input_names=["x", "context"], output_names=["y"],
                      dynamic_axes=axes, opset_version=18, dynamo=False)  # fmt: skip
    return onnxsim.simplify(onnx.load_from_string(file.getvalue()))[0]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@settings(max_examples=15, deadline=None)
@given(
    heads=st.integers(1, 4),
    width=st.integers(1, 9),
    scale=st.sampled_from([None, 1.0, 0.3]),
    flat=st.booleans(),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9)),
)
@pytest.mark.filterwarnings("ignore")
def test_any_attention_is_fused_and_equal(
    heads: int, width: int, scale: float | None, flat: bool, sizes: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    channels = heads * width
    with torch.no_grad():
        plain = exported(
            Attention(heads, width, scale, flat), (torch.rand(2, 5, channels), torch.rand(2, 3, channels))
        )
    model = onnx_ir.from_proto(plain)
    assert fuse(model) == 1
    fused = onnx_ir.to_proto(model)
    assert "Softmax" not in {node.op_type for node in fused.graph.node}
    batch, positions, tokens = sizes
    random = np.random.default_rng(0)
    feeds = {
        "x": random.standard_normal((batch, positions, channels), np.float32),
        "context": random.standard_normal((batch, tokens, channels), np.float32),
    }
    np.testing.assert_allclose(run(fused, feeds), run(plain, feeds), atol=2e-5)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_graphs_read_sizes_once_for_each_level(small, name: str) -> None:
    """Shapes that are read from computed tensors would stay as nodes: a handful are left.

    The gains of group norms need one for each size that is normed, which is up to five times a level.
    """
    graph = onnx.load(str(small.bundle / name / "model.onnx"), load_external_data=False).graph
    nodes = Counter(node.op_type for node in graph.node)
    gains = {node.input[1] for node in graph.node if node.op_type == "LayerNormalization"} & {
        node.output[0] for node in graph.node if node.op_type == "Expand"
    }
    assert nodes["Shape"] - len(gains) <= 20
    assert len(gains) <= 20 and nodes["InstanceNormalization"] == 0


class Norms(torch.nn.Module):
    """Three group norms as diffusers exports them, of which two have the same sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList([torch.nn.GroupNorm(3, 6), torch.nn.GroupNorm(3, 6)])
        self.wide, self.widen = torch.nn.GroupNorm(4, 8), torch.nn.Conv2d(6, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm in self.norms:
            x = x + functional.silu(norm(x))
        return self.wide(self.widen(x))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(2, 9))
def test_group_norms_stay_what_they_are(batch: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    module, file = Norms().eval(), io.BytesIO()
    axes = {0: "batch", 2: "height", 3: "width"}
    with torch.no_grad():
        torch.onnx.export(module, (torch.rand(2, 6, 5, 7),), file, input_names=["x"], output_names=["y"],
                          dynamic_axes={"x": axes, "y": axes}, opset_version=18, dynamo=False)  # fmt: skip
    plain = onnxsim.simplify(onnx.load_from_string(file.getvalue()))[0]
    model = onnx_ir.from_proto(plain)
    assert fuse(model) == 0
    fused = onnx_ir.to_proto(model)
    nodes = Counter(node.op_type for node in fused.graph.node)
    assert (nodes["LayerNormalization"], nodes["InstanceNormalization"]) == (3, 0)
    feeds = {"x": np.random.default_rng(0).standard_normal((batch, 6, height, width), np.float32)}
    np.testing.assert_allclose(run(fused, feeds), run(plain, feeds), atol=2e-4)


def group_normed(gain: float, offset: float) -> onnx.ModelProto:
    """(n, groups, values) normed along the values, as the exporter writes it, with a gain and an offset."""
    numbers = {"gain": np.full(4, gain, np.float32), "offset": np.full(4, offset, np.float32)}
    node = onnx.helper.make_node("InstanceNormalization", ["x", *numbers], ["y"], epsilon=1e-6)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "norm", [info("x", 1, ["n", 4, "values"])], [info("y", 1, ["n", 4, "values"])],
        [onnx.numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("mean", [0.0, 20.0, 300.0])
def test_norms_keep_their_digits_where_the_mean_is_large(mean: float) -> None:
    model = onnx_ir.from_proto(group_normed(1, 0))
    fuse(model)
    values = np.random.default_rng(0).normal(mean, 1, (2, 4, 100_000)).astype(np.float32)
    exact = values.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    found = run(onnx_ir.to_proto(model), {"x": values})
    assert np.linalg.norm(found - exact) <= 3e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize(("gain", "offset"), [(2, 0), (1, 1)])
def test_norms_with_gains_of_their_own_are_left_alone(gain: float, offset: float) -> None:
    model = onnx_ir.from_proto(group_normed(gain, offset))
    fuse(model)
    assert [node.op_type for node in model.graph] == ["InstanceNormalization"]


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_no_scores_are_left_in_a_bundle(small, name: str) -> None:
    nodes = Counter(
        node.op_type
        for node in onnx.load(str(small.bundle / name / "model.onnx"), load_external_data=False).graph.node
    )
    assert nodes["MultiHeadAttention"] == WITH_ATTENTION[name]
    assert nodes["Softmax"] == OVER_FEW_TOKENS.get(name, 0)


def test_a_graph_without_attention_stays_as_it_is() -> None:
    linear = torch.nn.Linear(3, 4)
    file = io.BytesIO()
    torch.onnx.export(linear, (torch.rand(2, 3),), file, dynamo=False, opset_version=18)
    model = onnx_ir.from_proto(onnx.load_from_string(file.getvalue()))
    before = [node.op_type for node in model.graph]
    assert fuse(model) == 0
    assert [node.op_type for node in model.graph] == before
    assert "com.microsoft" not in model.opset_imports
