"""Quality metrics and reports on drawn faces with known mouth opening, motion and brightness."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from drawn_faces import BOX, DARK, FAIR, face
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console
from scipy.ndimage import gaussian_filter

from sonic.errors import InputError
from sonic.media.audio import Sound
from sonic.media.video import Video
from sonic.verification.compare import PSNR_OF_EQUAL_DB
from sonic_calibration.quality.identity import identity
from sonic_calibration.quality.mouth import (
    closed_in_silence,
    lip_sync,
    mouth_amplitude,
    mouth_opening,
    speech_opening,
    speech_opening_of_samples,
)
from sonic_calibration.quality.picture import compare_videos, flicker, gradient_distance, sharpness
from sonic_calibration.quality.report import judge, quality_table, write_quality

RATE_HZ = 25.0
SAMPLE_RATE_HZ = 16_000


def openings(count: int, seed: int = 0) -> np.ndarray:
    """A random, smooth mouth opening, (count,), 0..1, that does not repeat."""
    values = gaussian_filter(np.random.default_rng(seed).random(count + 20), 2)[10:-10]
    return (values - values.min()) / np.ptp(values)


def sine(seconds: float, frequency_hz: float = 700, level_db: float = 0.0) -> np.ndarray:
    """A sine, float32 at 16 kHz; 0 dB is full scale."""
    at = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (10 ** (level_db / 20) * np.sin(2 * np.pi * frequency_hz * at)).astype(np.float32)


def syllables(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise with a speech-like envelope and pauses, float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    count = round(seconds * SAMPLE_RATE_HZ)
    envelope = np.interp(np.arange(count), np.arange(0, count, 1600), rng.random(-(-count // 1600)) ** 3)
    envelope[count // 2 : count // 2 + 6400] = 0
    return (envelope * rng.normal(0, 0.1, count)).astype(np.float32)


def defined_opening(samples: np.ndarray, frames: int, rate_hz: float) -> np.ndarray:
    """The documented definition of `speech_opening`, window by window."""
    hann = np.array([np.sin(np.pi * n / 640) ** 2 for n in range(640)])
    padded = np.concatenate([np.zeros(320), samples, np.zeros(320)])
    levels = []
    for start in range(0, len(samples) + 1, 160):
        spectrum = np.abs(np.fft.fft(padded[start : start + 640] * hann)) ** 2
        power = spectrum[[k for k in range(321) if 300 <= 25 * k <= 1500]].sum()
        levels.append(10 * np.log10(max(power / (640 * 240 / 4), 1e-20)))
    level = np.array(levels)
    x = np.clip((level - np.percentile(level, 95) + 20) / 20, 0, 1) * (level >= -60)
    kernel = np.exp(-0.5 * (np.arange(-16, 17) / 4) ** 2)
    smooth = np.convolve(np.pad(x, 16), kernel / kernel.sum(), "same")
    hops = (np.arange(frames) / rate_hz + 0.02) * 100
    return np.interp(hops, np.arange(len(smooth)) - 16, smooth)


@pytest.mark.parametrize("seconds", [0.13, 2.0, 11.0])  # 11 s take more than one chunk
def test_speech_opening_follows_its_definition(seconds: float) -> None:
    samples = syllables(seconds)
    frames = round(seconds * 30) + 9
    found = speech_opening_of_samples(samples, frames, 30)
    np.testing.assert_allclose(found, defined_opening(samples, frames, 30), atol=1e-4)
    assert (found[-1], found.shape) == (0, (frames,))


def test_channels_of_a_sound_are_averaged() -> None:
    samples = np.rint(syllables(1) * 32767).astype(np.int16)
    stereo = Sound(np.stack([samples, np.zeros_like(samples)], axis=1), SAMPLE_RATE_HZ)
    expected = speech_opening_of_samples(samples.astype(np.float32) / 65536, 25, RATE_HZ)
    np.testing.assert_allclose(speech_opening(stereo, 25, RATE_HZ), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("frequency_hz", "level_db", "opening"),
    [(700, 0, 1), (700, -59.9, 1), (700, -60.1, 0), (345, -59.9, 1), (1455, -60.1, 0), (3000, 0, 0)],
)
def test_levels_are_relative_to_a_full_scale_sine(
    frequency_hz: float, level_db: float, opening: float
) -> None:
    found = speech_opening_of_samples(sine(1, frequency_hz, level_db), 25, RATE_HZ)
    np.testing.assert_allclose(found[6:19], opening, atol=1e-3)


def test_a_syllable_opens_the_mouth_at_its_time() -> None:
    samples = np.zeros(2 * SAMPLE_RATE_HZ, np.float32)
    samples[16_320 - 2400 : 16_320 + 2400] = sine(0.3)  # about 1.02 s, the middle of frame 25
    found = speech_opening_of_samples(samples, 50, RATE_HZ)
    assert found.argmax() == 25
    np.testing.assert_allclose(found[25 - 10 : 25], found[26 : 26 + 10][::-1], atol=0.02)
    assert found[:18].max() < 1e-3


def test_silence_keeps_the_mouth_closed() -> None:
    for samples in (np.zeros(16_000, np.float32), np.zeros(0, np.float32)):
        np.testing.assert_array_equal(speech_opening_of_samples(samples, 30, RATE_HZ), np.zeros(30))
    silence = Sound(np.zeros((8000, 2), np.int16), 8000)
    np.testing.assert_array_equal(speech_opening(silence, 30, RATE_HZ), np.zeros(30))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 40), st.floats(1, 120), st.floats(-30, 6), st.integers(0, 99))
def test_speech_opening_is_within_0_and_1(
    count: int, frames: int, rate_hz: float, gain_db: float, seed: int
) -> None:
    samples = np.random.default_rng(seed).normal(0, 10 ** (gain_db / 20), count).astype(np.float32)
    found = speech_opening_of_samples(samples, frames, rate_hz)
    assert found.shape == (frames,)
    assert ((found >= 0) & (found <= 1)).all()
    louder = speech_opening_of_samples(2 * samples, frames, rate_hz)
    if count > 1000:  # far above -60 dBFS, so only relative levels count
        np.testing.assert_allclose(louder, found, atol=1e-4)


@pytest.mark.parametrize("skin", [FAIR, (142, 92, 64), DARK])
@pytest.mark.parametrize("moving", [False, True])
def test_the_measured_opening_is_the_drawn_one(skin: tuple[int, int, int], moving: bool) -> None:
    drawn = openings(50)
    phase = np.arange(50) if moving else np.zeros(50)
    frames = (
        face(opening, skin, np.sin(t / 3), np.cos(t / 4), 1 + 0.1 * np.sin(t / 2))
        for opening, t in zip(drawn, phase, strict=True)
    )
    measured = mouth_opening(frames, BOX)
    assert np.corrcoef(measured, drawn)[0, 1] > 0.98
    assert mouth_amplitude(measured) > 0.1
    assert ((measured >= 0) & (measured <= 1)).all()


@pytest.mark.parametrize("lag", range(-5, 6))
def test_the_lag_of_a_mouth_is_found(lag: int) -> None:
    driven = openings(80)
    late = driven[np.clip(np.arange(80) - lag, 0, 79)]
    measured = mouth_opening((face(opening) for opening in late), BOX)
    found = lip_sync(measured, driven, RATE_HZ)
    assert found.lag_frames == lag
    assert found.lag_seconds == pytest.approx(lag / 25)
    assert found.best_correlation > 0.98
    assert found.correlation == pytest.approx(np.corrcoef(measured, driven)[0, 1])
    if lag:
        assert found.correlation < found.best_correlation - 0.02


@settings(deadline=None)
@given(
    st.integers(0, 30).flatmap(
        lambda n: st.tuples(
            *[arrays(np.float64, n, elements=st.floats(-1e6, 1e6, allow_subnormal=False))] * 2
        )
    ),
    st.integers(0, 8),
)
def test_a_correlation_is_never_nan(signals: tuple[np.ndarray, np.ndarray], reach: int) -> None:
    found = lip_sync(*signals, RATE_HZ, reach)
    assert -1 <= found.correlation <= found.best_correlation + 1e-8 <= 1 + 2e-8
    assert abs(found.lag_frames) <= reach


def test_a_constant_signal_has_no_correlation() -> None:
    for constant in (np.zeros(40), np.full(40, 0.1)):
        found = lip_sync(constant, openings(40), RATE_HZ)
        assert (found.correlation, found.best_correlation, found.lag_frames) == (0, 0, 0)
        assert lip_sync(openings(40), constant, RATE_HZ) == found


def test_a_mouth_is_closed_in_silence() -> None:
    driven = np.repeat([0.0, 1.0, 0.0, 1.0], 10)
    assert closed_in_silence(0.3 + 0.2 * driven, driven) == pytest.approx(0)
    assert closed_in_silence(0.5 - 0.2 * driven, driven) == pytest.approx(1)
    half = 0.3 + 0.2 * np.maximum(driven, 0.5 * (np.arange(40) < 10))
    assert closed_in_silence(half, driven) == pytest.approx(0.25)
    assert closed_in_silence(np.linspace(0, 1, 40), np.full(40, 0.5)) is None
    assert closed_in_silence(np.full(40, 0.3), driven) is None


def test_a_report_has_everything(tmp_path) -> None:
    samples = syllables(2)
    sound = Sound(np.rint(samples * 32767).astype(np.int16)[:, None], SAMPLE_RATE_HZ)
    driven = speech_opening(sound, 50, RATE_HZ)
    frames = np.stack([face(opening, DARK) for opening in driven])
    video = Video(frames, RATE_HZ, sound)
    report = judge(video, BOX, face(skin=DARK), Video(frames, RATE_HZ), [20])
    assert report.lip_sync is not None and report.lip_sync.correlation > 0.98
    assert report.closed_in_silence is not None and report.closed_in_silence < 0.05
    assert report.identity is not None and report.identity.psnr_db > 60
    assert report.difference is not None and report.difference.psnr_db == PSNR_OF_EQUAL_DB
    assert report.flicker.border_ratio is not None
    console = Console(width=80, file=io.StringIO())
    console.print(quality_table(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for name in ("lip sync", "in silence", "sharpness", "at borders", "aligned", "reference"):
        assert name in text
    assert max(map(len, text.splitlines())) <= 80
    write_quality(tmp_path / "quality.json", report)
    stored = json.loads((tmp_path / "quality.json").read_text())
    assert stored == report.to_json()
    assert stored["lip_sync"]["correlation"] == report.lip_sync.correlation


def test_a_report_of_frames_only() -> None:
    report = judge(Video(np.stack([face()] * 3), RATE_HZ), BOX)
    assert (report.lip_sync, report.closed_in_silence, report.identity, report.difference) == (None,) * 4
    assert report.flicker.border_ratio is None and report.sharpness.ratio is None
    console = Console(width=80, file=io.StringIO())
    console.print(quality_table(report))
    assert "no sound" in console.file.getvalue()  # type: ignore[attr-defined]


FILM = [face()] * 3
VIDEO = Video(np.stack(FILM), RATE_HZ)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: speech_opening_of_samples(np.zeros((4, 2)), 3, 25), "should be \\(n,\\)"),
        (lambda: speech_opening_of_samples(np.array([np.nan]), 3, 25), "finite"),
        (lambda: speech_opening_of_samples(np.zeros(9), -1, 25), "-1 frames should be 0 or more"),
        (lambda: speech_opening_of_samples(np.zeros(9), 3, 0), "frame rate of 0 Hz"),
        (lambda: speech_opening_of_samples(np.zeros(9), 3, np.nan), "frame rate of nan Hz"),
        (lambda: mouth_opening(FILM, (0, 0, 0, 9)), "x1 < x2"),
        (lambda: mouth_opening(FILM, (0, 0, np.inf, 9)), "four numbers"),
        (lambda: mouth_opening(FILM, (200, 200, 300, 300)), "does not show the mouth"),
        (lambda: mouth_opening([np.zeros((9, 9, 3))], BOX), "uint8 \\(height, width, 3\\)"),
        (lambda: lip_sync([1, 2], [1, 2, 3], 25), "2 frames and one of 3 frames"),
        (lambda: lip_sync([1, np.nan], [1, 2], 25), "finite"),
        (lambda: lip_sync([1, 2], [1, 2], 25, -1), "maximum lag of -1"),
        (lambda: mouth_amplitude([]), "no frames"),
        (lambda: closed_in_silence([], []), "no frames"),
        (lambda: identity([], face(), BOX), "no frames"),
        (lambda: identity([face()[:99]], face(), BOX), "should be \\(128, 96, 3\\)"),
        (lambda: identity(FILM, face(), (10, 10, 14, 14)), "fewer than 7x7 pixels"),
        (lambda: identity(FILM, face(), (-1000, -1500, 1000, 600)), "nothing but the mouth"),
        (lambda: sharpness([]), "no frames"),
        (lambda: flicker([], BOX), "no frames"),
        (lambda: flicker(FILM, BOX, [3]), "frames from 1 to 2"),
        (lambda: flicker(FILM, BOX, [0]), "frames from 1 to 2"),
        (lambda: flicker([face(), face()[:99]], BOX), "should be \\(128, 96, 3\\)"),
        (lambda: compare_videos(VIDEO, VIDEO[:2]), "should be of one shape"),
        (lambda: compare_videos(VIDEO[:0], VIDEO[:0]), "no frames"),
        (lambda: compare_videos(VIDEO[:, :5], VIDEO[:, :5]), "at least 7x7"),
        (lambda: gradient_distance(face(), face()[:64]), "should be \\(64, 96, 3\\)"),
        (lambda: judge(Video(VIDEO[:0], 25), BOX), "no frames"),
        (lambda: judge(VIDEO, BOX, face()[:64]), "96x64 pixels should have the video's 96x128"),
    ],
)
def test_unusable_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
