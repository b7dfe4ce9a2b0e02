"""An even sample of a stream of unknown length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.engines.watched import Call
from sonic_calibration.recording.recorder import Recorder


def call(index: int, size: int = 4) -> Call:
    array = np.full(size, index, np.float32)
    return Call("unet", {"x": array}, {"y": array}, {"step": index})


@given(st.integers(1, 12), st.integers(0, 300))
def test_sample_is_even_and_bounded(limit: int, count: int) -> None:
    recorder = Recorder(limit)
    for index in range(count):
        recorder(call(index))
    kept = [c.tags["step"] for c in recorder.calls["unet"]]
    assert len(kept) <= limit
    assert kept[:1] == [0][:count]
    assert len(set(np.diff(kept))) <= 1
    assert len(kept) >= min(count, (limit + 1) // 2)


def test_byte_budget() -> None:
    recorder = Recorder(100, byte_budget=10 * 2 * 4 * 4)
    for index in range(50):
        recorder(call(index))
    assert 5 <= len(recorder.calls["unet"]) <= 10


def test_arrays_are_copied() -> None:
    recorder = Recorder(2)
    first = call(1)
    recorder(first)
    first.inputs["x"][:] = 9  # type: ignore[index]
    assert recorder.calls["unet"][0].inputs["x"][0] == 1


@pytest.mark.parametrize("arguments", [(0,), (1, 0)])
def test_limits_are_checked(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Recorder(*arguments)
