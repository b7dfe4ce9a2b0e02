"""The layout of a tensor in memory: a transpose only changes the layout and moves no data.

Sonic's graphs come from PyTorch, where channels are the second axis, and move them to the end for every
attention and back. The Arm Compute Library needs them at the end throughout. So each tensor has a logical
shape and an order in which its logical axes are stored; a Transpose changes only the order, and so does a
Reshape where the axes that it merges are adjacent in memory.

    layout = Layout((2, 64, 8, 8), (0, 2, 3, 1))        # a picture, channels last
    layout.transposed((0, 2, 3, 1)).is_plain            # True: already in the order that the graph needs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CHANNELS_LAST = (0, 2, 3, 1)  # order of a picture (count, channels, height, width) in memory


@dataclass(frozen=True)
class Layout:
    """A logical shape and the order of its axes in memory.

    Attributes:
        shape: sizes of the logical axes, as in the graph.
        order: for every axis in memory, outermost first, the logical axis that it holds.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def plain(cls, shape: Sequence[int]) -> Layout:
        """The layout with the logical axes in their own order in memory."""
        return cls(tuple(shape), tuple(range(len(shape))))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Sizes in memory, outermost first."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def is_plain(self) -> bool:
        """Whether memory has the axes in the graph's order; those of size 1 may be anywhere."""
        return self._axes() == sorted(self._axes())

    def stored_axis(self, axis: int) -> int:
        """The position in memory of a logical axis (negative ones count from the end)."""
        return self.order.index(axis % len(self.shape))

    def same_memory(self, order: Sequence[int]) -> bool:
        """Whether storing the axes in `order` would give the same memory."""
        return self._axes() == [axis for axis in order if self.shape[axis] != 1]

    def with_order(self, order: Sequence[int]) -> Layout:
        """The same shape in another order."""
        return Layout(self.shape, tuple(order))

    def permutation_to(self, order: Sequence[int]) -> tuple[int, ...]:
        """The transposition of the stored axes that gives `order`."""
        return tuple(self.order.index(axis) for axis in order)

    def transposed(self, permutation: Sequence[int]) -> Layout:
        """The layout after a Transpose: logical axis i was axis ``permutation[i]``; memory is unchanged."""
        where = {old: new for new, old in enumerate(permutation)}
        shape = tuple(self.shape[axis] for axis in permutation)
        return Layout(shape, tuple(where[axis] for axis in self.order))

    def reshaped(self, shape: Sequence[int]) -> Layout | None:
        """The layout after a Reshape to `shape`; None where data would have to move in memory."""
        shape = tuple(shape)
        if self.is_plain:
            return Layout.plain(shape)
        groups = _groups(self.shape, shape)
        first = {old[0]: (old, new) for old, new in groups}
        order: list[int] = []
        axes = self._axes()
        position = 0
        while position < len(axes):
            group = first.get(axes[position])
            if group is None or axes[position : position + len(group[0])] != group[0]:
                return None
            order += group[1]
            position += len(group[0])
        ones = [axis for axis, size in enumerate(shape) if size == 1]
        return Layout(shape, (*ones, *order))

    def _axes(self) -> list[int]:
        """The logical axes in memory order, without those of size 1."""
        return [axis for axis in self.order if self.shape[axis] != 1]


def _groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of consecutive axes that have the same elements in both shapes.

    Axes of size 1 are left out.
    """
    if math.prod(old) != math.prod(new):
        raise ValueError(f"a tensor of shape {old} has not the elements of {new}")
    left = [axis for axis, size in enumerate(old) if size != 1]
    right = [axis for axis, size in enumerate(new) if size != 1]
    groups = []
    while left:
        group = ([left.pop(0)], [right.pop(0)])
        sizes = [old[group[0][0]], new[group[1][0]]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                group[0].append(left.pop(0))
                sizes[0] *= old[group[0][-1]]
            else:
                group[1].append(right.pop(0))
                sizes[1] *= new[group[1][-1]]
        groups.append(group)
    return groups
