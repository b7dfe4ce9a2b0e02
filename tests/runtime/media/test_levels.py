"""How loud a recording is, and what is wrong with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.media.levels import Levels


def measured(samples: np.ndarray, *parts: int) -> Levels:
    levels = Levels(samples.shape[1])
    for part in np.split(samples, parts):
        levels.update(part)
    return levels


def tone(peak: float) -> np.ndarray:
    """int16 (n, 1): a sine, clipped where it is above full scale."""
    values = peak * np.sin(np.arange(20_000) / 7)
    return np.clip(np.rint(values * 32768), -32768, 32767).astype(np.int16)[:, np.newaxis]


@given(seed=st.integers(0, 2**32 - 1), parts=st.lists(st.integers(0, 500), max_size=4))
@settings(max_examples=30, deadline=None)
def test_levels_are_those_of_numpy(seed: int, parts: list[int]) -> None:
    samples = np.random.default_rng(seed).integers(-32768, 32768, (500, 2)).astype(np.int16)
    levels = measured(samples, *sorted(parts))
    assert levels.peak == np.abs(samples.astype(int)).max()
    left, right = samples.astype(np.float64).T
    expected = left @ right / np.sqrt((left @ left) * (right @ right))
    assert levels.correlation == pytest.approx(expected, abs=1e-12)
    full = (samples == 32767) | (samples == -32768)
    assert levels.clipped_fraction == full.mean()


def test_a_loud_sound_is_not_clipped() -> None:
    assert list(measured(tone(0.999)).notes()) == []
    assert measured(tone(0.999)).peak == pytest.approx(32735, abs=1)


def test_a_clipped_sound_is_noted() -> None:
    (note,) = measured(tone(1.5)).notes()
    assert note.startswith("is clipped: 5")  # arcsin(2/3) of a right angle is below: 53.5 % is at full scale


@pytest.mark.parametrize(("right", "noted"), [(-1.0, True), (-0.3, True), (1.0, False), (0.0, False)])
def test_channels_that_cancel_are_noted(right: float, noted: bool) -> None:
    left = tone(0.5)
    stereo = np.concatenate([left, np.rint(left * right).astype(np.int16)], axis=1)
    notes = list(measured(stereo).notes())
    assert len(notes) == noted and all("cancel each other" in note for note in notes)
