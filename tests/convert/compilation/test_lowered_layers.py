"""Convolutions, products and attention, compiled for this machine, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx_graphs import Agrees, node, normal, numbers

from sonic.errors import InputError
from sonic_convert.compilation.lowering import lower

# Convolutions


@pytest.mark.parametrize(
    ("shape", "weight", "attributes", "function"),
    [
        ((2, 6, 5, 7), (4, 6, 3, 3), {"pads": [1, 1, 1, 1]}, "convolution2d"),
        ((1, 6, 8, 9), (5, 6, 3, 3), {"strides": [2, 2], "pads": [0, 0, 1, 1]}, "convolution2d"),
        ((1, 6, 8, 9), (5, 6, 2, 3), {"strides": [1, 2], "pads": [0, 1, 2, 3]}, "convolution2d"),
        ((3, 6, 4, 4), (5, 6, 1, 1), {}, "convolution2d"),
        ((2, 6, 11), (4, 6, 3), {"pads": [1, 0]}, "convolution2d"),
        ((2, 6, 11), (4, 6, 3), {"pads": [1, 1], "strides": [2]}, "convolution2d"),
        ((1, 70, 6, 5), (70, 70, 3, 3), {"pads": [1, 1, 1, 1]}, "winograd_convolution2d"),
        ((1, 70, 6, 5), (8, 70, 3, 3), {"pads": [4, 1, 1, 1]}, "convolution2d"),
        ((1, 6, 8, 8), (9, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}, None),
        ((1, 6, 9, 8), (4, 6, 3, 3), {"dilations": [2, 1]}, None),
        ((1, 6, 11), (4, 6, 3), {"dilations": [3]}, None),
        ((1, 6, 3, 8, 8), (4, 6, 3, 1, 1), {"pads": [1, 0, 0, 1, 0, 0]}, None),
        ((1, 6, 8, 7), (4, 6, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, None),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_convolution(
    agrees: Agrees, shape: Any, weight: Any, attributes: Any, function: str | None, bias: bool
) -> None:
    weights = {"w": normal(*weight)} | ({"b": normal(weight[0])} if bias else {})
    done = agrees([node("Conv", "x w b" if bias else "x w", **attributes)], weights, {"x": normal(*shape)})
    assert done.calls == ({} if function is None else {function: 1})


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_convolution(agrees: Agrees, data: st.DataObject) -> None:
    def draw(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    axes = draw(1, 2)
    groups = draw(1, 2)
    kernel, strides = [draw(1, 4) for _ in range(axes)], [draw(1, 3) for _ in range(axes)]
    dilations = [draw(1, 2) for _ in range(axes)]
    pads = [draw(0, 3) for _ in range(2 * axes)]
    sizes = [draw(1, 9) for _ in range(axes)]
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    assume(all(s + pads[i] + pads[i + axes] >= spans[i] for i, s in enumerate(sizes)))
    channels, outputs = groups * draw(1, 5), groups * draw(1, 5)
    weights = {"w": normal(outputs, channels // groups, *kernel), "b": normal(outputs)}
    attributes: dict[str, Any] = {"pads": pads, "strides": strides, "dilations": dilations, "group": groups}
    x = normal(draw(1, 2), channels, *sizes)
    done = agrees([node("Conv", "x w b", **attributes)], weights, {"x": x})
    assert sum(done.calls.values()) == (groups == 1 and set(dilations) == {1})


def test_a_convolution_of_pictures_in_a_row(agrees: Agrees) -> None:
    """As `convolve_frames` exports it."""
    nodes = [
        node("Reshape", "x frames", "f"), node("Pad", "f column", "p"),
        node("Transpose", "p", "t", perm=[0, 2, 3, 1, 4]), node("Reshape", "t row", "r"),
        node("Conv", "r w b", "c", pads=[1, 1, 1, 1]), node("Reshape", "c apart", "a"),
        node("Slice", "a zero last four", "s"), node("Transpose", "s", "u", perm=[0, 3, 1, 2, 4]),
        node("Reshape", "u whole"),
    ]  # fmt: skip
    weights = {
        "w": normal(7, 6, 3, 3), "b": normal(7), "frames": numbers(2, 3, 6, 4, 5),
        "column": numbers(0, 0, 0, 0, 0, 0, 0, 0, 0, 1), "row": numbers(2, 6, 4, -1),
        "apart": numbers(2, 7, 4, 3, -1), "zero": numbers(0), "last": numbers(-1), "four": numbers(4),
        "whole": numbers(6, 7, 4, 5),
    }  # fmt: skip
    done = agrees(nodes, weights, {"x": normal(6, 6, 4, 5)})
    assert done.calls == {"convolution2d": 1}


def test_layers_of_one_shape_have_keys_of_their_own(agrees: Agrees) -> None:
    """The library keeps weights under keys: equal ones may be shared, others must not."""
    nodes = [
        node("Conv", "x w0 b0", "a"), node("Conv", "a w1 b1", "b"), node("Conv", "b w0 b1", "c"),
        node("Conv", "c w0 b1", "y", strides=[2, 1]),
    ]  # fmt: skip
    weights = {"w0": normal(6, 6, 2, 1), "w1": normal(6, 6, 2, 1), "b0": normal(6), "b1": normal(6)}
    done = agrees(nodes, weights, {"x": normal(1, 6, 9, 5)})
    assert len(done.lowered.keys) == len(done.lowered.weights) == 2


# Products


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (2, 3, 4, 6), (1, 6)])
def test_product_with_a_constant(agrees: Agrees, shape: tuple[int, ...]) -> None:
    done = agrees([node("MatMul", "x w")], {"w": normal(6, 7)}, {"x": normal(*shape)})
    assert done.calls == {"linear": 1}


@pytest.mark.parametrize(
    ("added", "merged"),
    [((7,), True), ((1,), False), ((1, 7), True), ((1, 1, 7), True), ((7, 1), False), ((1, 1, 1, 7), False)],
)
def test_a_vector_that_is_added_becomes_the_bias(
    agrees: Agrees, added: tuple[int, ...], merged: bool
) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Add", "b a")]
    weights = {"w": normal(6, 7), "b": normal(*added)}
    done = agrees(nodes, weights, {"x": normal(2, 7, 6)})
    assert done.calls == {"linear": 1}
    assert done.count("add") == (0 if merged else 1)


def test_a_product_that_is_read_twice_keeps_its_sum_apart(agrees: Agrees) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b", "c"), node("Mul", "a c")]
    agrees(nodes, {"w": normal(6, 7), "b": normal(7)}, {"x": normal(2, 6)})
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b")]
    agrees(nodes, {"w": normal(6, 7), "b": normal(7)}, {"x": normal(2, 6)}, ("a", "y"))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5, 6), (6, 7)), ((2, 5, 6), (2, 6, 7)), ((2, 5, 6), (6, 7)), ((5, 6), (3, 6, 7)),
        ((2, 1, 5, 6), (3, 6, 7)), ((2, 3, 5, 6), (2, 3, 6, 7)), ((1, 5, 6), (4, 6, 1)),
    ],
)  # fmt: skip
def test_product_of_what_varies(agrees: Agrees, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    done = agrees([node("MatMul", "a b")], {}, {"a": normal(*a), "b": normal(*b)})
    assert done.calls == {"batch_matmul": 1}
    if len(b) > 2:  # a stack of constants
        assert agrees([node("MatMul", "a b")], {"b": normal(*b)}, {"a": normal(*a)}).calls == done.calls
    agrees([node("MatMul", "a b")], {"a": normal(*a)}, {"b": normal(*b)})


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_a_transposed_operand_is_not_moved(agrees: Agrees, batch: tuple[int, ...]) -> None:
    count = len(batch)
    turned = [*range(count), count + 1, count]
    nodes = [node("Transpose", "b", "t", perm=turned), node("MatMul", "a t")]
    done = agrees(nodes, {}, {"a": normal(*batch, 5, 6), "b": normal(*batch, 7, 6)})
    assert done.calls == {"batch_matmul": 1}
    assert done.count("permute_dims") == 0
    both = [node("Transpose", "a", "s", perm=turned), node("Transpose", "b", "t", perm=turned)]
    agrees([*both, node("MatMul", "s t")], {}, {"a": normal(*batch, 6, 5), "b": normal(*batch, 7, 6)})


@pytest.mark.parametrize(
    ("weight", "bias", "attributes"),
    [
        ((6, 7), (7,), {}), ((7, 6), (7,), {"transB": 1}), ((6, 7), None, {}), ((6, 7), (1,), {}),
        ((6, 7), (1, 7), {}), ((6, 7), (), {}), ((6, 7), (5, 1), {}), ((6, 7), (5, 7), {}),
        ((6, 7), (7,), {"alpha": 0.5, "beta": 2.0}), ((6, 7), (7,), {"transA": 1}),
    ],
)  # fmt: skip
def test_gemm(agrees: Agrees, weight: Any, bias: Any, attributes: dict[str, Any]) -> None:
    weights = {"w": normal(*weight)} | ({} if bias is None else {"b": normal(*bias)})
    inputs = "x w" if bias is None else "x w b"
    x = normal(*((6, 5) if attributes.get("transA") else (5, 6)))
    agrees([node("Gemm", inputs, **attributes)], weights, {"x": x})


def test_gemm_of_what_varies(agrees: Agrees) -> None:
    feeds = {"x": normal(5, 6), "w": normal(7, 6), "b": normal(7)}
    agrees([node("Gemm", "x w b", transB=1)], {}, feeds)


@pytest.mark.parametrize("scale", [None, 0.25])
@pytest.mark.parametrize("keys", [5, 9])
@pytest.mark.parametrize("use_library", [True, False])
def test_attention(agrees: Agrees, scale: float | None, keys: int, use_library: bool) -> None:
    attributes: dict[str, Any] = {"num_heads": 3} | ({} if scale is None else {"scale": scale})
    feeds = {"q": normal(2, 5, 12), "k": normal(2, keys, 12), "v": normal(2, keys, 12)}
    nodes = [node("MultiHeadAttention", "q k v", **attributes)]
    done = agrees(nodes, {}, feeds, use_library=use_library)
    assert done.calls == ({"attention": 1} if use_library else {})


def test_attention_with_more_inputs_is_refused(graph_of: Callable[..., onnx.ModelProto]) -> None:
    feeds = {name: normal(2, 5, 12) for name in "qkv"}
    nodes = [node("MultiHeadAttention", "q k v b", num_heads=3)]
    with pytest.raises(InputError, match="MultiHeadAttention"):
        lower(graph_of(nodes, {"b": normal(36)}, feeds), {}, Path())
