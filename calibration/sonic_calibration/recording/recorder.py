"""Keeps an even sample of the runs of every submodel.

recorder = Recorder(calls_per_submodel=4)
model.generate(portrait, speech, observer=recorder)
recorder.calls["unet"][0].inputs["sample"]
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from sonic.engines.base import Call


class Recorder:
    """An observer for :meth:`sonic.SonicModel.generate`.

    Of a stream of calls whose length is not known, every k-th is kept; when there are too many, every
    other one is dropped and k doubles, so that the sample stays even over the whole run.

    Args:
        calls_per_submodel: at most this many calls are kept for each submodel.
        byte_budget: at most this many bytes of inputs and outputs are kept for each submodel (the
            first call is always kept).
    """

    def __init__(self, calls_per_submodel: int, byte_budget: int = 1 << 30) -> None:
        if calls_per_submodel < 1 or byte_budget < 1:
            raise ValueError("calls_per_submodel and byte_budget should be at least 1")
        self._limit, self._budget = calls_per_submodel, byte_budget
        self._seen: dict[str, int] = defaultdict(int)
        self._stride: dict[str, int] = defaultdict(lambda: 1)
        self.calls: dict[str, list[Call]] = defaultdict(list)

    def __call__(self, call: Call) -> None:
        """Take note of one run."""
        name = call.submodel
        index = self._seen[name]
        self._seen[name] += 1
        if index % self._stride[name]:
            return
        kept = self.calls[name]
        kept.append(Call(name, _copy(call.inputs), _copy(call.outputs), dict(call.tags)))
        while len(kept) > 1 and (len(kept) > self._limit or _bytes(kept) > self._budget):
            del kept[1::2]
            self._stride[name] *= 2


def _copy(arrays: object) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in dict(arrays).items()}  # type: ignore[call-overload]


def _bytes(calls: list[Call]) -> int:
    return sum(array.nbytes for call in calls for array in (*call.inputs.values(), *call.outputs.values()))
