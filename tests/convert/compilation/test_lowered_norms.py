"""Softmax, layer norms and group norms, compiled for this machine, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx_graphs import Agrees, node, normal, numbers

#: The weights of a product of 1 x 1, which leaves a picture with its channels last in memory.
ONE = np.eye(6, dtype=np.float32)[:, :, None, None]


@pytest.mark.parametrize("axis", [-1, 1, 2, 0])
def test_softmax(agrees: Agrees, axis: int) -> None:
    done = agrees([node("Softmax", "x", axis=axis)], {}, {"x": 5 * normal(3, 4, 5)})
    assert done.calls == {"softmax": 1}
    turned = [node("Transpose", "x", "t", perm=[2, 0, 1]), node("Softmax", "t", axis=axis)]
    agrees(turned, {}, {"x": 5 * normal(3, 4, 5)})


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.sampled_from((1e-5, 1e-3)), st.booleans())
def test_layer_norm(agrees: Agrees, shape: list[int], epsilon: float, turned: bool) -> None:
    shape[-1] *= 5
    gamma, beta = normal(shape[-1]), normal(shape[-1])
    x = normal(*(reversed(shape) if turned else shape))
    nodes = [node("Transpose", "x", "t")] if turned else [node("Identity", "x", "t")]
    nodes.append(node("LayerNormalization", "t g b", axis=-1, epsilon=epsilon))
    done = agrees(nodes, {"g": gamma, "b": beta}, {"x": x})
    assert done.has_program("layer_norm")


def test_layer_norm_over_several_axes_or_without_beta(agrees: Agrees) -> None:
    x = normal(2, 3, 4)
    done = agrees([node("LayerNormalization", "x g", axis=-1)], {"g": normal(4)}, {"x": x})
    assert done.has_program("layer_norm")
    agrees([node("Relu", "g", "r"), node("LayerNormalization", "x r", axis=-1)], {}, {"x": x, "g": normal(4)})
    agrees([node("LayerNormalization", "x g b", axis=1)], {"g": normal(3, 4), "b": normal(3, 4)}, {"x": x})


def group_norm(silu: bool = False) -> list[onnx.NodeProto]:
    """As `sonic_convert.export.fusion` leaves it, of x, which has been called a."""
    nodes = [
        node("Reshape", "a split", "r"), node("LayerNormalization", "r ones", "n", axis=-1, epsilon=1e-4),
        node("Reshape", "n whole", "w"), node("Mul", "w g", "m"), node("Add", "m b", "s" if silu else "y"),
    ]  # fmt: skip
    return [*nodes, node("Sigmoid", "s", "l"), node("Mul", "s l")] if silu else nodes


def group_norm_weights(groups: int, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    ones = [1] * (len(shape) - 2)
    return {
        "split": numbers(0, groups, -1), "whole": numbers(*shape),
        "ones": np.ones(int(np.prod(shape[1:])) // groups, np.float32),
        "g": normal(shape[1], *ones), "b": normal(shape[1], *ones),
    }  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups", "silu"),
    [((2, 6, 5, 7), 3, False), ((2, 6, 5, 7), 2, True), ((1, 6, 4, 4), 6, True), ((3, 6, 5, 1), 1, False)],
)
def test_group_norm(agrees: Agrees, shape: tuple[int, ...], groups: int, silu: bool, last: bool) -> None:
    before = node("Conv", "x one", "a") if last else node("Relu", "x", "a")
    weights = group_norm_weights(groups, shape) | {"one": ONE}
    done = agrees([before, *group_norm(silu)], weights, {"x": normal(*shape)})
    assert done.has_program("group_norm")
    assert done.count("permute_dims") == 2  # to channels last, and back at the end


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_group_norm_of_any_shape(agrees: Agrees, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 4))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    shape = (data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 5)), *sizes)
    assume(np.prod(shape[2:]) * shape[1] // groups > 1)
    nodes = [node("Relu", "x", "a"), *group_norm(data.draw(st.booleans()))]
    done = agrees(nodes, group_norm_weights(groups, shape), {"x": normal(*shape)}, tolerance=3e-5)
    assert done.has_program("group_norm")


@pytest.mark.parametrize("mean", [20.0, 300.0])
def test_group_norm_keeps_its_digits_where_the_mean_is_large(agrees: Agrees, mean: float) -> None:
    shape = (2, 8, 40, 50)
    x, weights = normal(*shape) + np.float32(mean), group_norm_weights(2, shape)
    nodes = [node("Relu", "x", "a"), *group_norm()]
    found = agrees(nodes, weights, {"x": x}, tolerance=1e-4).results["y"]
    exact = x.astype(np.float64).reshape(2, 2, -1)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-4)
    exact = exact.reshape(shape) * weights["g"] + weights["b"]
    assert np.linalg.norm(found - exact) <= 1e-4 * np.linalg.norm(exact)


def test_group_norm_whose_gain_is_elsewhere(agrees: Agrees) -> None:
    """The norm by itself, where what follows is no gain and offset of the channels, or is read twice."""
    x, weights = normal(2, 6, 6, 6), group_norm_weights(3, (2, 6, 6, 6))
    before = node("Relu", "x", "a")

    def alone(nodes: list[onnx.NodeProto], other: dict[str, np.ndarray], *more: str) -> None:
        done = agrees([before, *nodes], weights | other, {"x": x}, ("y", *more))
        assert done.has_program("group_norm")

    alone(group_norm(), {"g": normal(6)})  # along the width, which is 6 too
    alone(group_norm(), {"b": normal(6, 1)})  # along the height
    alone(group_norm(), {"g": normal(1)})
    alone([*group_norm()[:3], node("Mul", "w g")], {})
    alone(group_norm(), {}, "w")
    alone([*group_norm()[:3], node("Transpose", "w", perm=[0, 2, 1])], {"whole": numbers(2, 6, 36)})


def test_what_looks_like_group_norm(agrees: Agrees) -> None:
    """LayerNormalization of three axes with a gain of its own, or whose groups are not those of channels."""
    x, weights = normal(2, 6, 6, 6), group_norm_weights(3, (2, 6, 6, 6))
    before = node("Relu", "x", "a")

    def by_rows(nodes: list[onnx.NodeProto], other: dict[str, np.ndarray]) -> None:
        done = agrees([before, *nodes], weights | other, {"x": x})
        assert done.has_program("layer_norm") and not done.has_program("group_norm")

    by_rows(group_norm(), {"ones": normal(2 * 6 * 6)})
    by_rows([*group_norm()[:2], node("Relu", "n")], {})
    # Groups of a picture's rows: what is normalised has other axes than what comes out.
    by_rows(group_norm(), {"split": numbers(1, 3, -1), "ones": np.ones(4 * 6 * 6, np.float32)})
    by_rows(group_norm(), {"whole": numbers(4, 3, 6, 6), "g": normal(3, 1, 1), "b": normal(3, 1, 1)})


@pytest.mark.parametrize("outputs", [("y",), ("y", "s"), ("y", "l"), ("y", "t")])
def test_silu_whose_parts_are_read_too(agrees: Agrees, outputs: tuple[str, ...]) -> None:
    shape = (2, 6, 5, 7)
    nodes = [node("Relu", "x", "a"), *group_norm(silu=True), node("Add", "s x", "t")]
    nodes = nodes if "t" in outputs else nodes[:-1]
    agrees(nodes, group_norm_weights(3, shape), {"x": normal(*shape)}, outputs)
