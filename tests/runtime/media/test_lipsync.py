from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.errors import InputError
from sonic.media.audio import Sound
from sonic.media.lipsync import MouthMotionMeter, shift_sound, sound_offset_frames, speech_energy_change

FRAME_RATE_HZ = 25.0
SAMPLE_RATE_HZ = 16_000


def speech(frames: int, seed: int = 0) -> tuple[Sound, np.ndarray]:
    """Noise modulated at the rate of syllables, and how far a mouth opens for it, frame by frame.

    About four syllables a second, the peak of speech's modulation spectrum.
    """
    rng = np.random.default_rng(seed)
    samples = int(frames / FRAME_RATE_HZ * SAMPLE_RATE_HZ)
    seconds = np.arange(samples) / SAMPLE_RATE_HZ
    levels = rng.random(int(8 * seconds[-1]) + 2) ** 2
    envelope = np.interp(8 * seconds, np.arange(len(levels)), levels)
    values = np.clip(envelope * rng.normal(0, 0.2, samples), -1, 1)
    opening = envelope.reshape(frames, -1).mean(axis=1)
    return Sound((values * 32767).astype(np.int16)[:, None], SAMPLE_RATE_HZ), opening


def film_mouth(opening: np.ndarray, seed: int = 0) -> np.ndarray:
    """The motion that the meter sees of a face, 64 x 64, whose mouth opens so far."""
    rng = np.random.default_rng(seed)
    meter = MouthMotionMeter((8, 8, 56, 56))
    for value in opening:
        frame = rng.integers(96, 104, (64, 64, 3)).astype(np.uint8)
        height = 1 + round(10 * value)
        frame[44 - height // 2 : 45 + height // 2, 24:40] = 30
        meter.update(frame)
    return meter.signal


def delayed(signal: np.ndarray, frames: int) -> np.ndarray:
    """The signal `frames` frames later, held at its ends."""
    return signal[np.clip(np.arange(len(signal)) - frames, 0, len(signal) - 1)]


@pytest.mark.parametrize("offset", range(-3, 4))
@pytest.mark.parametrize("seed", range(3))
def test_a_known_offset_is_found(offset: int, seed: int) -> None:
    sound, opening = speech(150, seed)
    motion = film_mouth(delayed(opening, offset), seed)
    assert sound_offset_frames(motion, sound, FRAME_RATE_HZ, maximum_frames=3) == offset
    beyond = abs(offset) > 2
    assert sound_offset_frames(motion, sound, FRAME_RATE_HZ) == (0 if beyond else offset)


@pytest.mark.parametrize("offset", [-2, -1, 1, 2])
def test_the_shift_mends_the_offset(offset: int) -> None:
    sound, opening = speech(150)
    motion = film_mouth(delayed(opening, offset))
    mended = shift_sound(sound, offset, FRAME_RATE_HZ)
    assert sound_offset_frames(motion, mended, FRAME_RATE_HZ) == 0
    assert sound_offset_frames(motion, mended, FRAME_RATE_HZ, maximum_frames=4) == 0


@pytest.mark.parametrize("seed", range(20))
def test_unrelated_motion_has_no_clear_winner(seed: int) -> None:
    sound, _ = speech(100, seed)
    _, other = speech(100, seed + 1000)
    noise = np.random.default_rng(seed).random(100)
    assert sound_offset_frames(noise, sound, FRAME_RATE_HZ) == 0
    assert sound_offset_frames(film_mouth(other), sound, FRAME_RATE_HZ) == 0


def test_a_tie_between_offsets_has_no_clear_winner() -> None:
    sound, opening = speech(150)
    motion = film_mouth(opening) + delayed(film_mouth(opening), 1)
    assert sound_offset_frames(motion, sound, FRAME_RATE_HZ) == 0


def test_a_weak_winner_is_not_clear_however_long_the_video() -> None:
    sound, _ = speech(3000)
    change = speech_energy_change(sound, 3000, FRAME_RATE_HZ)
    noise = np.random.default_rng(0).normal(0, change.std(), 3000)
    assert sound_offset_frames(delayed(change, 2) + 2 * noise, sound, FRAME_RATE_HZ) == 2
    assert sound_offset_frames(delayed(change, 2) + 8 * noise, sound, FRAME_RATE_HZ) == 0


def test_signals_that_say_nothing_give_zero() -> None:
    sound, opening = speech(100)
    silence = Sound(np.zeros_like(sound.samples), SAMPLE_RATE_HZ)
    motion = film_mouth(delayed(opening, 1))
    assert sound_offset_frames(motion, sound, FRAME_RATE_HZ) == 1
    assert sound_offset_frames(motion, silence, FRAME_RATE_HZ) == 0
    assert sound_offset_frames(np.zeros(100), sound, FRAME_RATE_HZ) == 0
    assert sound_offset_frames(motion[:15], sound, FRAME_RATE_HZ) == 0
    assert sound_offset_frames(motion[:0], sound, FRAME_RATE_HZ) == 0


def test_motion_that_is_no_signal_is_refused() -> None:
    sound, _ = speech(50)
    for wrong in (np.zeros((5, 2)), np.array([0.0, np.nan])):
        with pytest.raises(InputError):
            sound_offset_frames(wrong, sound, FRAME_RATE_HZ)
    with pytest.raises(InputError):
        sound_offset_frames(np.zeros(50), sound, FRAME_RATE_HZ, maximum_frames=-1)


def test_the_meter_looks_at_the_mouth_only() -> None:
    still = np.full((100, 100, 3), 120, np.uint8)
    eyes, mouth = still.copy(), still.copy()
    eyes[:50] = 0
    mouth[74:80, 40:60] = 20
    for frame, moves in ((eyes, False), (mouth, True)):
        meter = MouthMotionMeter((10, 10, 90, 90))
        meter.update(still)
        meter.update(frame)
        meter.update(frame)
        assert meter.signal.shape == (3,)
        assert list(meter.signal > 0) == [False, moves, False]


def test_the_meter_takes_a_box_that_leaves_the_frame_but_no_mouth_outside() -> None:
    frame = np.zeros((50, 50, 3), np.uint8)
    meter = MouthMotionMeter((-20, -20, 60, 60))
    meter.update(frame)
    meter.update(frame + 255)
    assert list(meter.signal) == [0, 255]
    for outside in ((10, 40, 40, 90), (-90, 0, -10, 40)):
        with pytest.raises(InputError, match="face box"):
            MouthMotionMeter(outside).update(frame)
    for box in ((5, 5, 5, 9), (9, 5, 5, 9), (0, 0, float("nan"), 9)):
        with pytest.raises(InputError, match="face box"):
            MouthMotionMeter(box)


def test_energy_change_is_that_of_the_frame() -> None:
    samples = np.zeros((SAMPLE_RATE_HZ, 2), np.int16)
    samples[5 * 640 : 7 * 640] = 16384
    change = speech_energy_change(Sound(samples, SAMPLE_RATE_HZ), 30, FRAME_RATE_HZ)
    expected = np.zeros(30)
    expected[[5, 7]] = 0.25**0.3
    np.testing.assert_allclose(change, expected, atol=1e-6)


@given(frames=st.integers(-40, 40), length=st.integers(0, 3000), channels=st.sampled_from([1, 2]))
def test_a_shift_keeps_the_length_and_pads_with_silence(frames: int, length: int, channels: int) -> None:
    samples = np.arange(1, length + 1, dtype=np.int16)[:, None].repeat(channels, axis=1)
    shifted = shift_sound(Sound(samples, 1600), frames, FRAME_RATE_HZ)
    padding = np.zeros((abs(frames) * 64, channels), np.int16)
    if frames >= 0:
        expected = np.concatenate([padding, samples])[:length]
    else:
        expected = np.concatenate([samples, padding])[len(padding) :]
    assert shifted.sample_rate_hz == 1600
    assert shifted.samples.dtype == np.int16
    np.testing.assert_array_equal(shifted.samples, expected)
