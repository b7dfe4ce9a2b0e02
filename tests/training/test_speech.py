"""Voices and texts of both splits, utterances on disk, and clips mixed from them."""

from __future__ import annotations

import json
import shutil
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sonic.errors import InputError, OutputError
from sonic_training import speech
from sonic_training.sentences import (
    HELD_OUT_LANGUAGES,
    SENTENCES,
    VOICES,
    Plan,
    Split,
    plan_corpus,
    sentences,
    voices,
)
from sonic_training.speech import SAMPLE_RATE_HZ, Corpus, active_rms, build_corpus, synthesize

MISSING = [name for name in ("espeak-ng", "flite") if shutil.which(name) is None]
speaks = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: apt-get install espeak-ng flite"
)
BY_NAME = {voice.name: voice for voice in VOICES}


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Write float (n,) as a mono 16-bit file."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
        file.writeframes((samples * 32_768).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus made without a synthesizer: six humming utterances of three voices at -20 dBFS."""
    folder = tmp_path_factory.mktemp("hummed")
    entries = []
    for number in range(6):
        time = np.arange(round((1 + 0.7 * number) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        hum = np.sin(2 * np.pi * (100 + 30 * number) * time) + np.sin(2 * np.pi * (700 + 90 * number) * time)
        write_wav(folder / f"{number}.wav", 0.1 * hum)
        entries.append({"voice": f"voice {number % 3}", "text": f"text {number}", "file": f"{number}.wav"})
    (folder / "utterances.json").write_text(json.dumps({"utterances": entries}))
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return Corpus(folder)


def test_splits_share_neither_voices_nor_sentences() -> None:
    plans: dict[Split, list[Plan]] = {"train": plan_corpus("train"), "held_out": plan_corpus("held_out")}
    assert (len(plans["train"]), len(plans["held_out"])) == (400, 60)
    for what in ("voice", "text", "name"):
        assert not {getattr(p, what) for p in plans["train"]} & {getattr(p, what) for p in plans["held_out"]}
    for split, planned in plans.items():
        assert {plan.voice for plan in planned} == {voice.name for voice in voices(split)}


def test_what_is_held_out() -> None:
    assert len({voice.name for voice in VOICES}) == len(VOICES)
    held_out = voices("held_out")
    assert "flite-slt" in {voice.name for voice in held_out}
    assert {v.language for v in held_out} - {v.language for v in voices("train")} == HELD_OUT_LANGUAGES
    assert {voice.language for voice in VOICES} == set(SENTENCES)
    for language, texts in SENTENCES.items():
        kept, hidden = sentences(language, False), sentences(language, True)
        assert sorted(kept + hidden) == sorted(texts) and len(set(texts)) == len(texts)
        assert len(hidden) == (len(texts) if language in HELD_OUT_LANGUAGES else len(texts) // 4)


def test_plans_are_reproducible_and_varied() -> None:
    plans = plan_corpus("train", seed=3)
    assert plans == plan_corpus("train", seed=3) != plan_corpus("train", seed=4)
    assert plans[:50] == plan_corpus("train", 50, seed=3)
    speeds, pitches = [plan.speed for plan in plans], [plan.pitch for plan in plans]
    assert min(speeds) < 0.75 and max(speeds) > 1.35 and min(pitches) < 30 and max(pitches) > 70


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 1.2345, 7.0])
def test_clips_have_the_length_asked_for_and_never_clip(corpus: Corpus, seconds: float) -> None:
    generator = np.random.default_rng(0)
    for _ in range(40):
        clip = corpus.clip(generator, seconds)
        for samples in (clip.clean, clip.heard):
            assert samples.shape == (round(seconds * SAMPLE_RATE_HZ),) and samples.dtype == np.float32
            assert np.isfinite(samples).all() and np.abs(samples).max() <= 0.991
        assert clip.gain_db <= 3


def test_clips_are_reproducible(corpus: Corpus) -> None:
    first, second, third = (corpus.clip(np.random.default_rng(seed), 2.0) for seed in (1, 1, 2))
    assert np.array_equal(first.clean, second.clean) and np.array_equal(first.heard, second.heard)
    assert not np.array_equal(first.clean, third.clean)


def test_shares_of_silence_noise_and_equalisers(corpus: Corpus) -> None:
    generator = np.random.default_rng(0)
    clips = [corpus.clip(generator, 2.0) for _ in range(600)]
    half = SAMPLE_RATE_HZ // 2
    spoken = [clip for clip in clips if clip.voice is not None]
    edges = [clip for clip in spoken if not clip.clean[:half].any() or not clip.clean[-half:].any()]
    assert 0.02 < 1 - len(spoken) / 600 < 0.08
    assert 0.11 < len(edges) / 600 < 0.19
    assert all(not clip.clean.any() for clip in clips if clip.voice is None)
    assert 0.54 < np.mean([clip.noise is not None for clip in clips]) < 0.66
    assert 0.15 < np.mean([clip.tilt_db_per_octave != 0 for clip in clips]) < 0.25
    assert {clip.noise for clip in clips} == {None, "white", "pink", "babble"}
    assert {clip.voice for clip in clips} == {None, "voice 0", "voice 1", "voice 2"}
    assert min(clip.gain_db for clip in clips) < -13 and max(clip.gain_db for clip in clips) > 2


def test_noise_is_as_loud_as_stated(corpus: Corpus) -> None:
    generator = np.random.default_rng(5)
    noisy = 0
    for _ in range(80):
        clip = corpus.clip(generator, 2.0)
        noise = clip.heard - clip.clean
        if clip.signal_to_noise_db is None:
            assert clip.tilt_db_per_octave or not noise.any()
        elif clip.voice and not clip.tilt_db_per_octave:
            noisy += 1
            assert 15 <= clip.signal_to_noise_db <= 60
            rms = np.sqrt(np.mean(noise.astype(np.float64) ** 2))
            assert 20 * np.log10(active_rms(clip.clean) / rms) == pytest.approx(
                clip.signal_to_noise_db, abs=0.1
            )
    assert noisy > 10


def test_the_equaliser_is_gentle() -> None:
    impulse = np.zeros(4_000, np.float32)
    impulse[2_000] = 1
    spectrum = np.abs(np.fft.rfft(speech._tilted(impulse, 1.5)))
    for frequency_hz, gain_db in ((50, -4.98), (1_000, 0), (2_000, 1.5), (8_000, 4.5)):
        assert 20 * np.log10(spectrum[frequency_hz // 4]) == pytest.approx(gain_db, abs=0.05)


def test_unusable_arguments(corpus: Corpus, tmp_path: Path) -> None:
    voice = VOICES[0]
    for call, message in (
        (lambda: corpus.clip(np.random.default_rng(0), 0.01), "0.1 to 600 s"),
        (lambda: synthesize("No.", voice, speed=9), "speed is 9"),
        (lambda: synthesize("No.", voice, pitch=100), "pitch is 100"),
        (lambda: plan_corpus("test"), "split is 'test'"),  # type: ignore[arg-type]
        (lambda: plan_corpus("train", 0), "at least one"),
        (lambda: sentences("xx", False), "no sentences in 'xx'"),
        (lambda: Corpus(tmp_path), "build_corpus"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_damaged_corpora(folder: Path, tmp_path: Path) -> None:
    for name, content in (("utterances.json", b"{"), ("utterances.json", b"[]"), ("3.wav", b"RIFF")):
        copy = shutil.copytree(folder, tmp_path / f"{name}{len(content)}")
        (copy / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} (is damaged|cannot be read)"):
            Corpus(copy)
    (copy / "3.wav").unlink()
    with pytest.raises(InputError, match="3.wav"):
        Corpus(copy)


@pytest.mark.parametrize("name", ["flite-kal", "espeak-de+m1"])
def test_a_missing_program_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="is not installed.*apt-get install espeak-ng flite"):
        synthesize("Hello.", BY_NAME[name])


@speaks
@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.name)
def test_every_voice_speaks(voice: speech.Voice) -> None:
    text = sentences(voice.language, voice.held_out)[1]
    samples = synthesize(text, voice)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert 1 < len(samples) / SAMPLE_RATE_HZ < 6 and np.abs(samples).max() <= 0.951
    assert 20 * np.log10(active_rms(samples)) == pytest.approx(-20, abs=4)
    assert np.array_equal(samples, synthesize(text, voice))


@speaks
@pytest.mark.parametrize("name", ["flite-awb", "espeak-en-us+f2"])
def test_speed_and_pitch_are_heard(name: str) -> None:
    def middle_hz(samples: np.ndarray) -> float:
        """Median of the frames' fundamental: the peak of the autocorrelation between 60 and 400 Hz."""
        frames = np.lib.stride_tricks.sliding_window_view(samples, 640)[::320]
        correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 1_280)) ** 2)
        voiced = correlation[:, 0] > 0.1 * correlation[:, 0].max()
        return float(np.median(SAMPLE_RATE_HZ / (40 + correlation[voiced, 40:267].argmax(axis=1))))

    text, voice = "We were away a year ago.", BY_NAME[name]
    slow, fast = synthesize(text, voice, 0.7), synthesize(text, voice, 1.4)
    assert 1.6 < len(slow) / len(fast) < 2.4
    assert middle_hz(synthesize(text, voice, pitch=75)) > 1.2 * middle_hz(synthesize(text, voice, pitch=25))


@speaks
def test_failures_of_the_program_are_reported() -> None:
    with pytest.raises(InputError, match="espeak-ng cannot speak as espeak-de.m1 .*voice does not exist"):
        synthesize("Hallo.", replace(BY_NAME["espeak-de+m1"], arguments=("-v", "nowhere")))
    with pytest.raises(InputError, match="silent"):
        synthesize(" ", BY_NAME["espeak-de+m1"])


@speaks
def test_a_corpus_resumes_and_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    calls: list[tuple[int, int]] = []
    build_corpus(tmp_path / "whole", "held_out", 8, seed=1, progress=lambda *call: calls.append(call))
    assert calls == [(number, 8) for number in range(1, 9)]
    spoken: list[str] = []

    def interrupted(text: str, *arguments: object) -> np.ndarray:
        if len(spoken) == 3:
            raise KeyboardInterrupt
        spoken.append(text)
        return synthesize(text, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(speech, "synthesize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(tmp_path / "parts", "held_out", 8, seed=1)
    assert {path.suffix for path in (tmp_path / "parts").iterdir()} == {".wav"}
    monkeypatch.setattr(speech, "synthesize", synthesize)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    build_corpus(tmp_path / "parts", "held_out", 8, seed=1)
    assert kept and kept == {path: path.stat().st_mtime_ns for path in kept}
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    corpus = Corpus(tmp_path / "parts")
    assert [u.text for u in corpus.utterances] == [plan.text for plan in plan_corpus("held_out", 8, seed=1)]
    assert all(1 <= len(u.samples) / SAMPLE_RATE_HZ <= 6 for u in corpus.utterances)


@speaks
def test_lengths_are_made_to_fit() -> None:
    voice = BY_NAME["espeak-en-us"]
    for text in ("Hello?", " ".join(SENTENCES["en"][:6])):
        samples = speech._synthesize_to_fit(text, voice, 1.0, 50)
        assert 1 <= len(samples) / SAMPLE_RATE_HZ <= 6


@speaks
def test_an_unusable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        build_corpus(tmp_path / "file", "train", 1)
