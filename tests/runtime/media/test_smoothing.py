from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.errors import InputError
from sonic.media.smoothing import MOTION_THRESHOLD, TemporalSmoother


def smooth(frames: np.ndarray) -> np.ndarray:
    smoother = TemporalSmoother()
    finished = [done for frame in frames for done in smoother.push(frame)]
    return np.stack(finished + smoother.flush())


def moving_bar(frames: int = 8, size: int = 32, step: int = 2) -> np.ndarray:
    """A bright bar, 6 pixels wide, that moves to the right over a dark ground."""
    video = np.full((frames, size, size, 3), 0.2, np.float32)
    for index in range(frames):
        video[index, :, 4 + step * index : 10 + step * index] = 0.8
    return video


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_moving_edge_stays_as_it_is(step: int) -> None:
    video = moving_bar(frames=5, step=step)
    np.testing.assert_array_equal(smooth(video), video)


def test_a_moving_edge_in_noise_stays_sharp() -> None:
    rng = np.random.default_rng(0)
    clean = moving_bar()
    noisy = clean + rng.normal(0, 0.01, clean.shape).astype(np.float32)
    result = smooth(noisy)
    steepest = np.abs(np.diff(result.mean(axis=(1, 3)), axis=1)).max(axis=1)
    np.testing.assert_allclose(steepest, 0.6, atol=0.01)
    assert np.abs(result - clean).max() < 0.06  # four to six sigma: no ghost of the bar


def test_noise_of_a_static_region_goes_down() -> None:
    rng = np.random.default_rng(0)
    video = (0.5 + rng.normal(0, 0.01, (12, 32, 32, 3))).astype(np.float32)
    result = smooth(video)
    jitter_before = np.diff(video, axis=0).var()
    jitter_after = np.diff(result, axis=0).var()
    assert result[1:-1].var() < 0.5 * video[1:-1].var()
    assert result[[0, -1]].var() < 0.8 * video[[0, -1]].var()
    assert jitter_after < 0.25 * jitter_before
    np.testing.assert_allclose(result.mean(), video.mean(), atol=1e-5)


def test_flicker_in_turn_is_removed() -> None:
    video = np.full((9, 8, 8, 3), 0.5, np.float32)
    video[::2] += 0.01
    result = smooth(video)
    assert np.ptp(result[1:-1]) < 0.001


def test_a_steady_change_passes() -> None:
    ramp = np.linspace(0.2, 0.5, 13, dtype=np.float32)
    video = np.broadcast_to(ramp[:, None, None, None], (13, 6, 6, 3))
    np.testing.assert_allclose(smooth(video)[1:-1], video[1:-1], atol=1e-6)


def test_the_gate_follows_its_formula() -> None:
    difference = 0.03
    video = np.full((3, 5, 5, 3), 0.5, np.float32)
    video[1] += difference
    gate = (1 - (difference / MOTION_THRESHOLD) ** 2) ** 2
    expected = 0.5 + difference - gate * 2 * difference / 4
    np.testing.assert_allclose(smooth(video)[1], expected, atol=1e-6)


def test_a_small_speck_that_moves_is_kept() -> None:
    video = np.full((3, 9, 9, 3), 0.5, np.float32)
    video[1, 4, 4] += MOTION_THRESHOLD * 1.01
    np.testing.assert_array_equal(smooth(video)[1, 4, 4], video[1, 4, 4])


def test_the_neighbours_of_motion_are_kept() -> None:
    video = np.full((3, 9, 9, 3), 0.5, np.float32)
    video[1] += 0.01
    video[1, 4, 4] += 3.01 * MOTION_THRESHOLD
    result = smooth(video)[1]
    kept = np.all(result == video[1], axis=2)
    assert kept[3:6, 3:6].all()
    assert kept.sum() == 9


def test_channels_may_come_first() -> None:
    rng = np.random.default_rng(1)
    video = moving_bar()[:, :, :20] + rng.normal(0, 0.01, (8, 32, 20, 3)).astype(np.float32)
    channels_first = smooth(np.moveaxis(video, 3, 1))
    np.testing.assert_allclose(np.moveaxis(channels_first, 1, 3), smooth(video), atol=1e-6)


@given(frames=st.integers(0, 6), seed=st.integers(0, 100))
def test_as_many_frames_come_out_within_their_range(frames: int, seed: int) -> None:
    video = np.random.default_rng(seed).random((frames, 5, 4, 3)).astype(np.float32)
    smoother = TemporalSmoother(motion_threshold=1.0)
    counts, result = [], []
    for frame in video:
        finished = smoother.push(frame)
        counts.append(len(finished))
        result += finished
    result += smoother.flush()
    assert counts == [0, *[1] * (frames - 1)][:frames]
    assert len(result) == frames
    assert all(frame.dtype == np.float32 for frame in result)
    assert all(frame.min() >= -1e-6 and frame.max() <= 1 + 1e-6 for frame in result)
    assert smoother.flush() == []


def test_frames_are_neither_changed_nor_kept() -> None:
    buffer = np.full((4, 4, 3), 0.5, np.float32)
    smoother = TemporalSmoother()
    smoother.push(buffer)
    buffer[:] = 0.9  # a caller may use its buffer again
    (first,) = smoother.push(buffer)
    assert np.all(first == 0.5)
    assert np.all(buffer == 0.9)


def test_a_smoother_serves_one_video_after_another() -> None:
    video = moving_bar()
    smoother = TemporalSmoother()
    for frame in np.random.default_rng(0).random((4, 7, 7, 3)):
        smoother.push(frame)
    smoother.flush()
    finished = [done for frame in video for done in smoother.push(frame)] + smoother.flush()
    np.testing.assert_array_equal(np.stack(finished), smooth(video))


def test_frames_that_do_not_fit_are_refused() -> None:
    smoother = TemporalSmoother()
    for shape in ((4, 4), (4, 4, 4), (1, 4, 4, 3)):
        with pytest.raises(InputError, match="should be"):
            smoother.push(np.zeros(shape, np.float32))
    smoother.push(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(InputError, match="as before"):
        smoother.push(np.zeros((5, 4, 3), np.float32))
    for threshold in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(InputError):
            TemporalSmoother(threshold)
