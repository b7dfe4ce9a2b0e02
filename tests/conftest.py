"""Checkpoints, bundles and clips that several tests share; all small and made on the spot."""

from __future__ import annotations

import fcntl
import os
import shutil
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

import sonic
from sonic_convert.drawing.demo_portrait import draw_portrait

ASSETS = Path(__file__).parents[1] / "convert/sonic_convert/assets"
SPEECH = ASSETS / "speech.wav"
MakeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes its part of the cores, before they start.

    PyTorch's threads wait for each other in busy loops: with more threads than cores they take several times
    the time. A value that was set by hand stays.
    """
    processes = len(getattr(config.option, "tx", None) or ())
    if processes > 1 and "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))


@dataclass(frozen=True)
class Converted:
    """A checkpoint and the bundle made from it."""

    checkpoint: Path
    bundle: Path


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Gives a folder by name, which a function fills; one process of the run calls it, for all of them.

    Each process has a copy, made in a second where filling the folder may take a minute: what tests do to
    theirs does not reach the other processes.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:

        def make_here(name: str, fill: Callable[[Path], object]) -> Path:
            folder = tmp_path_factory.mktemp(name)
            fill(folder)
            return folder

        return make_here

    common = tmp_path_factory.getbasetemp().parent / "made-once"

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        common.mkdir(exist_ok=True)
        original, partial = common / name, common / f"{name}.partial"
        with open(common / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits here
            if not original.exists():
                shutil.rmtree(partial, ignore_errors=True)  # of a process in which it failed
                partial.mkdir()
                fill(partial)
                partial.rename(original)
        return Path(shutil.copytree(original, tmp_path_factory.mktemp(name) / "copy"))

    return make


def _converted(make_once: MakeOnce, name: str, seed: int) -> Converted:
    def fill(folder: Path) -> None:
        # Here, as it takes seconds: of several test processes, the first only hands out tests to the others.
        from sonic_convert.conversion import convert
        from sonic_convert.synth.dimensions import OTHER, SMALL
        from sonic_convert.synth.synthesize import synthesize

        dimensions = {"small": SMALL, "other": OTHER}[name]
        convert(synthesize(folder / "checkpoint", dimensions, seed), folder / "bundle")

    folder = make_once(name, fill)
    return Converted(folder / "checkpoint", folder / "bundle")


@pytest.fixture(scope="session")
def small(make_once: MakeOnce) -> Converted:
    """The default small checkpoint and its bundle."""
    return _converted(make_once, "small", 0)


@pytest.fixture(scope="session")
def other(make_once: MakeOnce) -> Converted:
    """A checkpoint of other widths, heads, layers and tokens, and its bundle."""
    return _converted(make_once, "other", 1)


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
