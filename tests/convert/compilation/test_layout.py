"""Layouts against NumPy: what is stored, read in the order that the layout tells, is what the graph sees."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic_convert.compilation.layout import CHANNELS_LAST, Layout

SIZES = st.lists(st.sampled_from((1, 1, 2, 3, 4, 6)), min_size=1, max_size=4).map(tuple)


@st.composite
def new_shapes(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of as many elements: neighbours merged, axes split, or something else; with ones anywhere."""
    sizes = list(shape)
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(("merge", "split", "any")))
        position = draw(st.integers(0, max(0, len(sizes) - 1)))
        if kind == "merge":
            end = draw(st.integers(position, len(sizes)))
            sizes[position:end] = [math.prod(sizes[position:end])]
        elif kind == "split" and sizes:
            divisors = [n for n in range(1, sizes[position] + 1) if sizes[position] % n == 0]
            part = draw(st.sampled_from(divisors))
            sizes[position : position + 1] = [part, sizes[position] // part]
        elif kind == "any":
            sizes = draw(st.permutations(sizes))
    sizes = [size for size in sizes if size != 1 or draw(st.booleans())]
    for _ in range(draw(st.integers(0, 1))):
        sizes.insert(draw(st.integers(0, len(sizes))), 1)
    return tuple(sizes)


def stored(array: np.ndarray, layout: Layout) -> np.ndarray:
    """The memory of an array that is stored as a layout says."""
    assert layout.shape == array.shape and sorted(layout.order) == list(range(array.ndim))
    return np.transpose(array, layout.order).ravel()


@settings(max_examples=300, deadline=None)
@given(SIZES, st.data())
def test_memory_stays_through_any_chain(shape: tuple[int, ...], data: st.DataObject) -> None:
    array = np.arange(math.prod(shape)).reshape(shape)
    layout = Layout.plain(shape)
    memory = array.ravel()
    for _ in range(data.draw(st.integers(1, 5), "steps")):
        step = data.draw(st.sampled_from(("transpose", "reshape", "move")), "step")
        permutation = data.draw(st.permutations(range(array.ndim)), "permutation")
        if step == "transpose":
            array, layout = np.transpose(array, permutation), layout.transposed(permutation)
        elif step == "move":
            turned = memory.reshape(layout.stored_shape).transpose(layout.permutation_to(permutation))
            memory, layout = turned.ravel(), layout.with_order(permutation)
        else:
            sizes = data.draw(new_shapes(array.shape), "sizes")
            after = layout.reshaped(sizes)
            array = array.reshape(sizes)
            if after is None:  # in no order of the new axes is the memory the same
                assert not any(
                    (stored(array, Layout(sizes, order)) == memory).all()
                    for order in itertools.permutations(range(len(sizes)))
                )
                after, memory = Layout.plain(sizes), array.ravel()
            layout = after
        assert layout.stored_shape == tuple(layout.shape[axis] for axis in layout.order)
        np.testing.assert_array_equal(memory, stored(array, layout))


@settings(max_examples=200, deadline=None)
@given(SIZES, st.data())
def test_what_is_the_same_memory(shape: tuple[int, ...], data: st.DataObject) -> None:
    layout = Layout(shape, tuple(data.draw(st.permutations(range(len(shape))))))
    order = data.draw(st.permutations(range(len(shape))))
    array = np.arange(math.prod(shape)).reshape(shape)
    memory = stored(array, layout)
    assert layout.same_memory(order) == (stored(array, layout.with_order(order)) == memory).all()
    assert layout.is_plain == (array.ravel() == memory).all()


def test_channels_last_is_what_attention_asks_for() -> None:
    picture = Layout((2, 64, 8, 9), CHANNELS_LAST)
    assert picture.stored_shape == (2, 8, 9, 64) and not picture.is_plain
    assert picture.stored_axis(1) == picture.stored_axis(-3) == 3
    rows = picture.transposed((0, 2, 3, 1)).reshaped((2, 72, 64))
    assert rows is not None and rows.is_plain
    # Position by position: memory would have to move to become channels first.
    assert picture.reshaped((2, 64 * 72)) is None
    heads = picture.reshaped((2, 4, 16, 72))
    assert heads is not None and heads.stored_shape == (2, 72, 4, 16)


@pytest.mark.parametrize(
    ("shape", "order", "new"),
    [
        ((2, 3, 4), (0, 2, 1), (24,)), ((2, 3, 4), (0, 2, 1), (4, 6)), ((2, 3, 4), (1, 0, 2), (6, 4)),
        ((2, 3, 4, 5), (0, 3, 2, 1), (6, 20)), ((2, 3, 4, 5), (0, 2, 3, 1), (6, 20)),
    ],
)  # fmt: skip
def test_axes_that_do_not_lie_together_are_not_merged(
    shape: tuple[int, ...], order: tuple[int, ...], new: tuple[int, ...]
) -> None:
    assert Layout(shape, order).reshaped(new) is None
    assert Layout.plain(shape).reshaped(new) == Layout.plain(new)


def test_another_number_of_elements_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) has not the elements of \(2, 3, 5\)"):
        Layout((2, 3, 4), (2, 0, 1)).reshaped((2, 3, 5))
