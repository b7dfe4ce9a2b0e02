"""Every other operator that is lowered here, compiled for this machine, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_graphs import EXACTLY, Agrees, node, normal, numbers

from sonic.errors import InputError
from sonic_convert.compilation.lowering import lower

#: A product of 1 x 1 leaves a picture with its channels last in memory.
LAST = [node("Conv", "x one", "last")]
ONE = np.eye(6, dtype=np.float32)[:, :, None, None]


# Arithmetic


UNARY = ("Relu", "Neg", "Abs", "Sin", "Cos", "Tanh", "Floor", "Sigmoid", "Erf", "Exp", "Sqrt")
BINARY = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Pow")


def test_functions(agrees: Agrees) -> None:
    x = 3 * normal(2, 6, 3, 5)
    nodes = [node(operator, "a" if operator == "Sqrt" else "last", operator) for operator in UNARY]
    nodes.insert(0, node("Abs", "last", "a"))
    agrees([node("Identity", "x", "last"), *nodes], {}, {"x": x}, UNARY)
    agrees([*LAST, *nodes], {"one": ONE}, {"x": x}, UNARY)


@pytest.mark.parametrize("operands", ["last b", "b last"])
def test_two_operands(agrees: Agrees, operands: str) -> None:
    x, b = np.abs(normal(2, 6, 3, 5)) + 0.5, np.abs(normal(2, 6, 3, 5)) + 0.5
    nodes = [node(operator, operands, operator) for operator in BINARY]
    agrees([node("Identity", "x", "last"), *nodes], {}, {"x": x, "b": b}, BINARY)
    agrees([*LAST, *nodes], {"one": ONE}, {"x": x, "b": b}, BINARY)
    agrees([*LAST, *nodes], {"one": ONE, "b": b[0]}, {"x": x}, BINARY)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_operands_of_any_shape_and_layout(agrees: Agrees, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 4))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    feeds, nodes = {}, []
    for name in ("a", "b"):
        axes = data.draw(st.integers(0, rank))
        sizes = [data.draw(st.sampled_from((1, size))) for size in shape[rank - axes :]]
        permutation = data.draw(st.permutations(range(axes)))
        feeds[name] = normal(*(sizes[axis] for axis in permutation))
        back = [permutation.index(axis) for axis in range(axes)]
        turn = node("Transpose", name, f"{name}t", perm=back) if axes else node("Identity", name, f"{name}t")
        nodes.append(turn)
    constant = data.draw(st.sampled_from(("a", "b", None)))
    weights = {constant: feeds.pop(constant)} if constant else {}
    agrees([*nodes, node("Sub", "at bt")], weights, feeds, tolerance=EXACTLY)


def test_silu(agrees: Agrees) -> None:
    for product in ("x s", "s x"):
        done = agrees([node("Sigmoid", "x", "s"), node("Mul", product)], {}, {"x": 4 * normal(3, 40)})
        assert "silu" in done.lowered.module.script()
    other = [node("Sigmoid", "x", "s"), node("Mul", "s b")]
    done = agrees(other, {}, {"x": normal(3, 40), "b": normal(3, 40)})
    assert "silu" not in done.lowered.module.script()


def test_more_than_two_operands(agrees: Agrees) -> None:
    feeds = {"a": normal(3, 4), "b": normal(4), "c": normal(3, 1)}
    for operator in ("Min", "Max"):
        agrees([node(operator, "a b c")], {}, feeds, tolerance=EXACTLY)
        agrees([node(operator, "a")], {}, {"a": feeds["a"]}, tolerance=EXACTLY)


# What only moves numbers


def moves(agrees: Agrees, *nodes: onnx.NodeProto, x: np.ndarray | None = None, **weights: np.ndarray) -> Any:
    """Of x, and of `last`, which is as large and has its channels last in memory."""
    x = normal(2, 6, 4, 5) if x is None else x
    agrees([node("Identity", "x", "last"), *nodes], weights, {"x": x}, tolerance=EXACTLY)
    return agrees([*LAST, *nodes], weights | {"one": ONE}, {"x": x})


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_chains_of_transpositions_and_reshapes(agrees: Agrees, data: st.DataObject) -> None:
    x = normal(*data.draw(st.lists(st.sampled_from((1, 2, 3, 4)), min_size=1, max_size=4)))
    array, nodes, weights = x, [], {}
    for step in range(data.draw(st.integers(1, 4))):
        before, after = f"v{step}" if step else "x", f"v{step + 1}"
        if data.draw(st.booleans()):
            permutation = data.draw(st.permutations(range(array.ndim)))
            nodes.append(node("Transpose", before, after, perm=permutation))
            array = array.transpose(permutation)
        else:
            shape = list(array.shape)
            position = data.draw(st.integers(0, len(shape) - 1))
            shape[position : position + 2] = [int(np.prod(shape[position : position + 2]))]
            shape.insert(data.draw(st.integers(0, len(shape))), 1)
            weights[f"s{step}"] = np.array(shape)
            nodes.append(node("Reshape", f"{before} s{step}", after))
            array = array.reshape(shape)
    done = agrees([*nodes, node("Identity", after)], weights, {"x": x}, tolerance=EXACTLY)
    assert done.y.shape == array.shape


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_concat_of_different_layouts(agrees: Agrees, axis: int) -> None:
    c = normal(2, 6, 4, 5)
    moves(agrees, node("Concat", "x last c", axis=axis), c=c)
    moves(agrees, node("Concat", "c last x c", axis=axis), c=c)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_split(agrees: Agrees, axis: int) -> None:
    x = normal(6, 6, 6, 6)
    sizes = {"sizes": numbers(1, 3, 2)}
    for nodes, more in (
        ([node("Split", "last sizes", "a b c", axis=axis)], sizes),
        ([node("Split", "last", "a b c", axis=axis, num_outputs=3)], {}),
        ([node("Split", "last", "a b c d", axis=axis, num_outputs=4)], {}),
    ):
        joined = " ".join(name for name in reversed(nodes[0].output))
        moves(agrees, *nodes, node("Concat", joined, axis=axis), x=x, **more)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ((1,), (3,), (1,), None), ((1, 0), (4, 3), (-3, 3), None), ((0,), (2**62,), (2,), (2,)),
        ((-3,), (-1,), (-1,), (1,)), ((1, 1, 0), (2, 4, 3), None, None), ((-1,), (-(2**62),), (1,), (-1,)),
        ((0,), (6,), (1,), (4,)),
    ],
)  # fmt: skip
def test_slice(agrees: Agrees, starts: Any, ends: Any, axes: Any, steps: Any) -> None:
    weights = {"starts": numbers(*starts), "ends": numbers(*ends)}
    inputs = "last starts ends"
    if axes is not None:
        weights["axes"], inputs = numbers(*axes), f"{inputs} axes"
    if steps is not None:
        weights["steps"], inputs = numbers(*steps), f"{inputs} steps"
    moves(agrees, node("Slice", inputs), **weights)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(agrees: Agrees, axis: int) -> None:
    indices: dict[str, Any] = {"a": 2, "b": -1, "c": [1], "d": [[0]], "e": [2, 0, 1], "f": [[0, -1], [1, 1]]}
    x = normal(3, 6, 4, 5)
    weights = {name: np.array(index) for name, index in indices.items()}
    nodes = [node("Gather", f"last {name}", f"{name}.y", axis=axis) for name in indices]
    results = [f"{name}.y" for name in indices]
    agrees([node("Identity", "x", "last"), *nodes], weights, {"x": x}, results, tolerance=EXACTLY)
    agrees([*LAST, *nodes], weights | {"one": ONE}, {"x": x}, results)


def test_gather_of_a_constant(agrees: Agrees) -> None:
    feeds = {"i": np.array([[0, 3], [2, 2]])}
    agrees([node("Gather", "table i")], {"table": normal(4, 5)}, feeds, tolerance=EXACTLY)


@pytest.mark.parametrize("shape", [(3, 2, 6, 4, 5), (1, 1, 1, 1), (2, 6, 4, 5), (1,)])
def test_expand(agrees: Agrees, shape: tuple[int, ...]) -> None:
    moves(agrees, node("Expand", "last shape"), shape=numbers(*shape))
    small = normal(2, 6, 1, 1)
    moves(agrees, node("Expand", "last shape"), x=small, shape=numbers(*shape))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(agrees: Agrees, mode: str) -> None:
    weights = {"w": normal(12, 6, 1, 1)}
    nodes = [node("Conv", "x w", "a"), node("DepthToSpace", "a", blocksize=2, mode=mode)]
    agrees(nodes, weights, {"x": normal(2, 6, 3, 5)})
    agrees([node("DepthToSpace", "x", blocksize=2, mode=mode)], {}, {"x": normal(2, 12, 3, 5)}, tolerance=0)


def test_shapes(agrees: Agrees) -> None:
    moves(agrees, node("Flatten", "last"))
    moves(agrees, node("Flatten", "last", axis=-1))
    moves(agrees, node("Flatten", "last", axis=0))
    moves(agrees, node("Unsqueeze", "last axes", "u"), node("Squeeze", "u axes"), axes=numbers(0, -1, 2))
    moves(agrees, node("Squeeze", "last"), x=normal(1, 6, 1, 5))
    moves(agrees, node("Squeeze", "last axes"), x=normal(1, 6, 1, 5), axes=numbers(-2))
    moves(agrees, node("Reshape", "last shape"), shape=numbers(0, -1, 5))
    moves(agrees, node("Reshape", "last shape"), shape=numbers(2, 2, 3, 20))
    moves(agrees, node("Transpose", "last"))
    moves(agrees, node("Dropout", "last"))


def test_a_shape_is_known_before_the_program_runs(agrees: Agrees) -> None:
    nodes = [
        node("Shape", "x", "all"), node("Shape", "x", "middle", start=1, end=-1),
        node("Slice", "all zero one", "batch"), node("Concat", "middle batch rest", "shape", axis=0),
        node("Reshape", "x shape"),
    ]  # fmt: skip
    weights = {"zero": numbers(0), "one": numbers(1), "rest": numbers(-1)}
    done = agrees(nodes, weights, {"x": normal(2, 6, 4, 5)}, tolerance=EXACTLY)
    assert done.y.shape == (6, 4, 2, 5)


def test_constants_are_folded(agrees: Agrees) -> None:
    nodes = [
        node("Constant", "", "two", value_float=2.0), node("Mul", "half two", "one"),
        node("Cast", "one", "c", to=1), node("Transpose", "matrix", "turned"),
        node("MatMul", "x turned", "m"), node("Mul", "m c"),
    ]  # fmt: skip
    weights = {"half": np.float32(0.5), "matrix": normal(7, 6).astype(np.float32)}
    done = agrees(nodes, weights, {"x": normal(3, 6)})
    assert done.calls == {"linear": 1}
    assert next(iter(done.lowered.weights.values())).shape == (6, 7)


def test_halves_are_widened_when_lowered(agrees: Agrees) -> None:
    nodes = [node("Cast", "half", "w", to=1), node("MatMul", "x w")]
    done = agrees(nodes, {"half": normal(6, 7).astype(np.float16)}, {"x": normal(3, 6)})
    assert done.calls == {"linear": 1}
    assert {array.dtype for array in done.lowered.weights.values()} == {np.dtype(np.float32)}


def test_results_that_are_inputs_or_constants(agrees: Agrees) -> None:
    nodes = [
        node("Identity", "x"), node("Identity", "c", "z"), node("Relu", "x", "r"), node("Identity", "r", "s"),
    ]  # fmt: skip
    agrees(nodes, {"c": normal(3)}, {"x": normal(2, 3)}, ("y", "z", "r", "s"), tolerance=EXACTLY)


def test_operators_of_tvms_own_front_end(agrees: Agrees) -> None:
    """On tensors in whatever layout, with one or several results."""
    nodes = [
        *LAST, node("ReduceMean", "last axes", "m"), node("Resize", "last - scales", "r", mode="nearest"),
        node("Where", "c last m", "y"), node("Greater", "last m", "c"),
    ]  # fmt: skip
    nodes[-1], nodes[-2] = nodes[-2], nodes[-1]
    weights = {"one": ONE, "axes": numbers(1), "scales": np.array([1, 1, 2, 2], np.float32)}
    agrees(nodes, weights, {"x": normal(2, 6, 4, 5)}, ("y", "r", "m", "c"))


def test_without_the_library(agrees: Agrees) -> None:
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1]), node("Reshape", "c rows", "r"),
        node("MatMul", "r m", "p"), node("Transpose", "p", "t", perm=[0, 2, 1]), node("MatMul", "p t", "u"),
        node("Softmax", "u", "s"), node("LayerNormalization", "s l k"),
        node("Gather", "p zero", "q", axis=0), node("Gemm", "q n o", "g", transB=1),
    ]  # fmt: skip
    weights = {
        "w": normal(8, 6, 3, 3), "b": normal(8), "rows": numbers(0, 0, -1), "m": normal(20, 9),
        "n": normal(4, 9), "o": normal(4), "l": normal(8), "k": normal(8), "zero": np.int64(0),
    }  # fmt: skip
    feeds = {"x": normal(2, 6, 4, 5)}
    done = agrees(nodes, weights, feeds, ("y", "g"), use_library=False)
    assert done.calls == {} and not done.lowered.weights


# Errors


def test_an_operator_that_is_not_supported(graph_of: Callable[..., onnx.ModelProto]) -> None:
    unknown = node("StringNormalizer", "x")
    unknown.name = "/a/node"
    model = graph_of([unknown], {}, {"x": normal(3)})
    with pytest.raises(InputError, match=r"operator StringNormalizer \(node '/a/node'\) cannot be compiled"):
        lower(model, {}, Path())


def test_a_missing_shape(graph_of: Callable[..., onnx.ModelProto]) -> None:
    model = graph_of([node("Relu", "x")], {}, {"x": normal(2, 3)})
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "count"
    with pytest.raises(InputError, match="the input 'x' has dynamic axes; give a shape for it"):
        lower(model, {}, Path())
    assert lower(model, {"x": (4, 3)}, Path()).inputs == ("x",)
