"""Keeps an even sample of the calls of every submodel.

Example:

    recorder = Recorder(calls_per_submodel=4)
    model.generate(portrait, speech, observer=recorder)
    recorder.calls["unet"][0].inputs["sample"]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from sonic.engines.watched import Call


class Recorder:
    """An observer for :meth:`sonic.SonicModel.generate`.

    The number of calls is not known in advance, so every k-th call is kept; when there are too many, every
    other one is dropped and k doubles, so that the sample stays even over the whole run.

    Args:
        calls_per_submodel: maximum number of calls that are kept for each submodel.
        byte_budget: maximum size of the inputs and outputs that are kept for each submodel, in bytes; the
            first call is always kept.

    Attributes:
        calls: the kept calls of each submodel, in the order in which they ran.

    Raises:
        ValueError: a maximum is below 1.
    """

    def __init__(self, calls_per_submodel: int, byte_budget: int = 1 << 30) -> None:
        if calls_per_submodel < 1 or byte_budget < 1:
            raise ValueError("calls_per_submodel and byte_budget should be at least 1")
        self._limit, self._budget = calls_per_submodel, byte_budget
        self._seen: dict[str, int] = defaultdict(int)
        self._stride: dict[str, int] = defaultdict(lambda: 1)
        self.calls: dict[str, list[Call]] = defaultdict(list)

    def __call__(self, call: Call) -> None:
        """Observe one call; its arrays are copied if it is kept."""
        name = call.submodel
        index = self._seen[name]
        self._seen[name] += 1
        if index % self._stride[name]:
            return
        kept = self.calls[name]
        kept.append(Call(name, _copy(call.inputs), _copy(call.outputs), dict(call.tags)))
        while len(kept) > 1 and (len(kept) > self._limit or _total_bytes(kept) > self._budget):
            del kept[1::2]
            self._stride[name] *= 2


def _copy(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in arrays.items()}


def _total_bytes(calls: list[Call]) -> int:
    return sum(array.nbytes for call in calls for array in (*call.inputs.values(), *call.outputs.values()))
