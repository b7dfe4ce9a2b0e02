"""Checkpoints, bundles and clips that several tests share; all small and made on the spot."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

import sonic
from sonic_convert.conversion import convert
from sonic_convert.drawing.demo_portrait import draw_portrait
from sonic_convert.synth.dimensions import OTHER, SMALL, SynthDimensions
from sonic_convert.synth.synthesize import synthesize

ASSETS = Path(__file__).parents[1] / "convert/sonic_convert/assets"
SPEECH = ASSETS / "speech.wav"


@dataclass(frozen=True)
class Converted:
    """A checkpoint and the bundle made from it."""

    checkpoint: Path
    bundle: Path


def _converted(folder: Path, dimensions: SynthDimensions, seed: int) -> Converted:
    checkpoint = synthesize(folder / "checkpoint", dimensions, seed)
    convert(checkpoint, folder / "bundle")
    return Converted(checkpoint, folder / "bundle")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The default small checkpoint and its bundle."""
    return _converted(tmp_path_factory.mktemp("small"), SMALL, 0)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A checkpoint of other widths, heads, layers and tokens, and its bundle."""
    return _converted(tmp_path_factory.mktemp("other"), OTHER, 1)


@pytest.fixture(scope="session")
def model(small: Converted) -> sonic.SonicModel:
    """The small bundle, loaded."""
    return sonic.load_model(small.bundle)


@pytest.fixture(scope="session")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn portrait, not square."""
    path = tmp_path_factory.mktemp("portrait") / "portrait.png"
    draw_portrait(3).resize((288, 432)).save(path)
    return path


@pytest.fixture(scope="session")
def recording() -> tuple[np.ndarray, int]:
    """The demo's recording: int16 (n,) and its rate."""
    with wave.open(str(SPEECH)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16), file.getframerate()


@pytest.fixture(scope="session")
def short_wav(tmp_path_factory: pytest.TempPathFactory, recording: tuple[np.ndarray, int]) -> Path:
    """0.7 s of speech, 16 kHz mono: 8 frames, shorter than a window."""
    samples, rate = recording
    path = tmp_path_factory.mktemp("speech") / "short.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples[4000 : 4000 + int(0.7 * rate)].tobytes())
    return path


@pytest.fixture(scope="session")
def long_mp3(tmp_path_factory: pytest.TempPathFactory, recording: tuple[np.ndarray, int]) -> Path:
    """4.3 s of speech, 48 kHz stereo MP3: 53 frames, three windows, no multiple of 25."""
    samples, rate = recording
    samples = np.resize(samples, int(4.3 * rate))
    path = tmp_path_factory.mktemp("speech") / "long.mp3"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16p", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format="s16p", layout="stereo", rate=48_000)
        for part in (frame, None):
            for resampled in resampler.resample(part):
                container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    return path
