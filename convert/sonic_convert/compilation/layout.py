"""How a tensor lies in memory: a transposition is a fact to remember, not work to do.

Sonic's graphs come from PyTorch, where channels are the second axis, and move them to the end for every
attention and back. The Arm Compute Library wants them at the end throughout. So each tensor is known by
its logical shape and by the order in which the logical axes are stored; a Transpose changes the order
only, and a Reshape too, where the axes that it merges lie next to each other.

    layout = Layout((2, 64, 8, 8), (0, 2, 3, 1))        # a picture, channels last
    layout.transposed((0, 2, 3, 1)).is_plain            # True: what the graph asks for is there already
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
        shape: sizes as the graph sees them.
        order: for every axis in memory, outermost first, the logical axis that it holds.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def plain(cls, shape: Sequence[int]) -> Layout:
        """Stored as the graph sees it."""
        return cls(tuple(shape), tuple(range(len(shape))))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Sizes in memory, outermost first."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def is_plain(self) -> bool:
        """Whether memory holds the axes in the graph's order; those of size 1 may be anywhere."""
        return self._long() == sorted(self._long())

    def stored_axis(self, axis: int) -> int:
        """Where in memory a logical axis (negative ones count from the end) is."""
        return self.order.index(axis % len(self.shape))

    def same_memory(self, order: Sequence[int]) -> bool:
        """Whether storing the axes in `order` would give the same memory."""
        return self._long() == [axis for axis in order if self.shape[axis] != 1]

    def with_order(self, order: Sequence[int]) -> Layout:
        """The same shape in another order."""
        return Layout(self.shape, tuple(order))

    def permutation_to(self, order: Sequence[int]) -> tuple[int, ...]:
        """The transposition of the stored axes that gives `order`."""
        return tuple(self.order.index(axis) for axis in order)

    def transposed(self, permutation: Sequence[int]) -> Layout:
        """After a Transpose: logical axis i is what axis ``permutation[i]`` was; memory stays."""
        where = {old: new for new, old in enumerate(permutation)}
        shape = tuple(self.shape[axis] for axis in permutation)
        return Layout(shape, tuple(where[axis] for axis in self.order))

    def reshaped(self, shape: Sequence[int]) -> Layout | None:
        """After a Reshape to `shape`, with the same memory; None where memory would have to move."""
        shape = tuple(shape)
        if self.is_plain:
            return Layout.plain(shape)
        groups = _groups(self.shape, shape)
        first = {old[0]: (old, new) for old, new in groups}
        order: list[int] = []
        long = self._long()
        position = 0
        while position < len(long):
            group = first.get(long[position])
            if group is None or long[position : position + len(group[0])] != group[0]:
                return None
            order += group[1]
            position += len(group[0])
        ones = [axis for axis, size in enumerate(shape) if size == 1]
        return Layout(shape, (*ones, *order))

    def _long(self) -> list[int]:
        """The logical axes in the order of memory, without those of size 1."""
        return [axis for axis in self.order if self.shape[axis] != 1]


def _groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes of both shapes that hold the same elements; axes of size 1 are left out."""
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
