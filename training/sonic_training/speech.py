"""Speech for training: a corpus of synthesized utterances, and clips mixed from them.

The utterances are synthesized with espeak-ng and flite; nothing is downloaded. Whole voices, one whole
language and a quarter of the texts of every other language are held out. Each clip has two versions:
`clean`, from which the mouth is drawn, and `heard`, with noise and equalisation, which is the model's
input; so the model learns to move the mouth for the voice alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import wave
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from sonic.errors import InputError, OutputError
from sonic.media.audio import SILENCE_PEAK_DBFS
from sonic.storage.files import replace_file
from sonic_training.sentences import VOICES, Split, Voice, plan_corpus

SAMPLE_RATE_HZ = 16_000
PACKAGES = "apt-get install espeak-ng flite"
UTTERANCE_SECONDS = (1.0, 6.0)
#: RMS level of the active frames of an utterance (`active_rms`), the same for all voices.
LEVEL_DBFS = -20.0

_INDEX = "utterances.json"
_FULL_SCALE = 32_768
_WORDS_PER_MINUTE = 165
_TIMEOUT_SECONDS = 60
_EDGE_SECONDS = 0.03  # silence that is kept before and after an utterance
_FRAME_SAMPLES = SAMPLE_RATE_HZ // 100
_ACTIVE_DB = -40.0  # frames further below the loudest one count as silence
_SILENT_SHARE, _QUIET_EDGE_SHARE, _NOISY_SHARE, _TILTED_SHARE = 0.05, 0.15, 0.6, 0.2
_LONGEST_PAUSE_SECONDS = 1.2
_GAIN_LIMITS_DB = (-14.0, 3.0)
_RATIO_LIMITS_DB = (15.0, 60.0)
_NOISES = ("white", "pink", "babble")


def synthesize(text: str, voice: Voice, speed: float = 1.0, pitch: int = 50) -> np.ndarray:
    """Synthesize a text with a voice.

    The same arguments give the same samples. 30 ms of silence are kept at both ends; the active part has an
    RMS of `LEVEL_DBFS`, or less if the peaks would exceed 0.95.

    Args:
        text: what to say, in the voice's language.
        voice: one of `VOICES`, or another voice of espeak-ng or flite.
        speed: relative to the voice's natural speed, 0.5 to 2.5; 2 takes half as long.
        pitch: 0 (about half the natural frequency) to 99 (about twice); 50 is the natural pitch.

    Returns:
        float32 (n,), mono at 16 kHz, full scale at -1 and 1.

    Raises:
        InputError: speed or pitch is outside its limits, the program is not installed or fails, or its
            output is silent.
    """
    if not 0.5 <= speed <= 2.5:
        raise InputError(f"the speed is {speed}, but should be from 0.5 to 2.5")
    if not 0 <= pitch <= 99:
        raise InputError(f"the pitch is {pitch}, but should be from 0 to 99")
    with tempfile.TemporaryDirectory(prefix="sonic-speech-") as folder:
        path = Path(folder) / "speech.wav"
        if voice.synthesizer == "espeak-ng":
            # -b 1: UTF-8, regardless of the locale. On standard input, as a text may begin with "-".
            rate = round(_WORDS_PER_MINUTE * speed)
            arguments = ["-b", "1", "-s", str(rate), "-p", str(pitch), "-w", str(path), "--stdin"]
        else:
            features = (f"duration_stretch={1 / speed:.4f}", f"f0_shift={2 ** ((pitch - 50) / 50):.4f}")
            arguments = ["--setf", features[0], "--setf", features[1], "-t", text, "-o", str(path)]
        command = [voice.synthesizer, *voice.arguments, *arguments]
        try:
            done = subprocess.run(
                command, input=text.encode(), capture_output=True, timeout=_TIMEOUT_SECONDS, check=False
            )
        except FileNotFoundError as error:
            raise InputError(f"{voice.synthesizer} is not installed; install it with: {PACKAGES}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{voice.synthesizer} cannot speak as {voice.name} ({error})") from error
        if done.returncode or not path.is_file():
            reason = " ".join(done.stderr.decode(errors="replace").split()) or f"exit code {done.returncode}"
            raise InputError(f"{voice.synthesizer} cannot speak as {voice.name} ({reason})")
        samples, rate_hz = _read_wav(path)
    resampled = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ, quality="HQ").astype(np.float32)
    active = _active(resampled)
    if not active.any():
        raise InputError(
            f"the speech of {voice.synthesizer} as {voice.name} is silent; give a text that it can speak "
            f"instead of {text!r}"
        )
    frames = np.flatnonzero(active)
    edge = round(_EDGE_SECONDS * SAMPLE_RATE_HZ)
    trimmed = resampled[max(frames[0] * _FRAME_SAMPLES - edge, 0) : (frames[-1] + 1) * _FRAME_SAMPLES + edge]
    gain = 10 ** (LEVEL_DBFS / 20) / active_rms(trimmed)
    return _faded(trimmed * np.float32(min(gain, 0.95 / np.abs(trimmed).max())))


def active_rms(samples: np.ndarray) -> float:
    """RMS of the active part of a signal: its 10 ms frames at most 40 dB below the loudest one.

    Args:
        samples: float (n,), 16 kHz.

    Returns:
        The RMS; 0 for silence.
    """
    active = _active(samples)
    frames = samples[: len(active) * _FRAME_SAMPLES].reshape(-1, _FRAME_SAMPLES)[active]
    return float(np.sqrt(np.mean(frames.astype(np.float64) ** 2))) if len(frames) else 0.0


def _active(samples: np.ndarray) -> np.ndarray:
    """bool (n // 160,): which 10 ms frames are louder than silence."""
    count = len(samples) // _FRAME_SAMPLES
    frames = samples[: count * _FRAME_SAMPLES].reshape(-1, _FRAME_SAMPLES).astype(np.float64)
    power = np.mean(frames**2, axis=1)
    silence = 10 ** (SILENCE_PEAK_DBFS / 10)
    return power > max(power.max(initial=0.0) * 10 ** (_ACTIVE_DB / 10), silence)


def _faded(samples: np.ndarray, fade_samples: int = 80) -> np.ndarray:
    """A copy that fades in and out within 5 ms, so that cuts do not click."""
    count = min(fade_samples, len(samples) // 2)
    ramp = np.linspace(0, 1, count, endpoint=False, dtype=np.float32)
    faded = samples.astype(np.float32)
    faded[:count] *= ramp
    faded[len(faded) - count :] *= ramp[::-1]
    return faded


def build_corpus(
    folder: str | os.PathLike[str],
    split: Split,
    count: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the utterances of a split as mono WAV files at 16 kHz, and the index `utterances.json`.

    The same arguments and versions of the synthesizers give the same bytes. An interrupted call leaves only
    complete files, and the next one synthesizes the missing ones; the index is written last. Other
    utterances that are already in the folder are kept, but are not in the index.

    Args:
        folder: created if it does not exist.
        split: "train" or "held_out".
        count: number of utterances; 400 for "train" and 60 for "held_out" by default.
        seed: of order, speeds and pitches.
        progress: called after each utterance with the number of finished utterances and the total.

    Returns:
        The folder.

    Raises:
        InputError: see `plan_corpus` and `synthesize`.
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    plans = plan_corpus(split, count, seed)
    voices_by_name = {voice.name: voice for voice in VOICES}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, plan in enumerate(plans, 1):
            path = folder / plan.name
            if not path.is_file():
                voice = voices_by_name[plan.voice]
                write_wav(path, _synthesize_to_fit(plan.text, voice, plan.speed, plan.pitch))
            if progress is not None:
                progress(number, len(plans))
        entries = [asdict(plan) | {"file": plan.name} for plan in plans]
        text = json.dumps({"utterances": entries}, indent=1, ensure_ascii=False) + "\n"
        replace_file(folder / _INDEX, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{folder}: the speech corpus cannot be written ({error})") from error
    return folder


def _synthesize_to_fit(text: str, voice: Voice, speed: float, pitch: int) -> np.ndarray:
    """Synthesize an utterance whose length is within `UTTERANCE_SECONDS`, if necessary at another speed."""
    shortest, longest = (round(seconds * SAMPLE_RATE_HZ) for seconds in UTTERANCE_SECONDS)
    samples = synthesize(text, voice, speed, pitch)
    for _ in range(2):  # the length is not exactly proportional to the speed
        if shortest <= len(samples) <= longest:
            return samples
        wanted = 1.1 * shortest if len(samples) < shortest else 0.95 * longest
        speed = min(max(speed * len(samples) / wanted, 0.5), 2.5)
        samples = synthesize(text, voice, speed, pitch)
    if len(samples) > longest:
        return _faded(samples[:longest])
    # "Hello?" stays too short at any speed.
    return np.pad(samples, (0, max(shortest - len(samples), 0)))


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Write float32 (n,) at 16 kHz as a mono 16-bit WAV file, atomically.

    Raises:
        OutputError: the file cannot be written.
    """

    def write(partial: Path) -> None:
        with wave.open(str(partial), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
            file.writeframes(np.clip(np.rint(samples * _FULL_SCALE), -32_768, 32_767).astype("<i2").tobytes())

    replace_file(path, write)


def _read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Samples, float32 (n,), and sample rate in Hz of a mono 16-bit WAV file."""
    try:
        with wave.open(str(path)) as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise InputError(f"{path} should be a WAV file of one channel with 16 bits a sample")
            data = file.readframes(file.getnframes())
            return np.frombuffer(data, "<i2").astype(np.float32) / _FULL_SCALE, file.getframerate()
    except (OSError, EOFError, wave.Error, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as a WAV file ({error}); make the corpus again") from error


@dataclass(frozen=True, eq=False)
class Utterance:
    """One text spoken by one voice.

    Attributes:
        voice: the voice's name.
        text: what is said.
        samples: int16 (n,), mono at 16 kHz.
    """

    voice: str
    text: str
    samples: np.ndarray


@dataclass(frozen=True, eq=False)
class SpeechClip:
    """Speech with pauses.

    Attributes:
        clean: float32 (n,), mono at 16 kHz, below full scale: the voice alone, which moves the mouth.
        heard: float32 (n,), aligned with `clean`: with noise and equalisation, the model's input.
        voice: name of the speaking voice; None if nobody speaks.
        gain_db: gain of both versions.
        noise: "white", "pink" or "babble"; None without noise.
        signal_to_noise_db: level of the speech relative to the noise; in a clip without speech, of
            utterances at their usual level. None without noise.
        tilt_db_per_octave: slope of the equaliser between 100 Hz and 8 kHz; 0 without equaliser.
    """

    clean: np.ndarray
    heard: np.ndarray
    voice: str | None
    gain_db: float
    noise: str | None
    signal_to_noise_db: float | None
    tilt_db_per_octave: float


class Corpus:
    """The utterances that `build_corpus` wrote, in memory (2 MB per minute).

    Attributes:
        utterances: in the order of the index.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Read the utterances of a folder.

        Raises:
            InputError: the index or a file that it names is missing or damaged.
        """
        index = Path(folder) / _INDEX
        try:
            entries: list[dict[str, Any]] = json.loads(index.read_text(encoding="utf-8"))["utterances"]
            self.utterances = tuple(
                Utterance(entry["voice"], entry["text"], _read_utterance(index.with_name(entry["file"])))
                for entry in entries
            )
        except InputError:
            raise
        except FileNotFoundError as error:
            raise InputError(f"{index} is missing; make the speech corpus with build_corpus") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{index} is damaged ({error}); make the speech corpus again") from error
        if not self.utterances:
            raise InputError(f"{index} lists no utterances; make the speech corpus again")
        self._by_voice: dict[str, list[np.ndarray]] = {}
        for utterance in self.utterances:
            self._by_voice.setdefault(utterance.voice, []).append(utterance.samples)

    def clip(self, generator: np.random.Generator, seconds: float) -> SpeechClip:
        """Mix a random clip; the same state of the generator gives the same clip.

        One voice speaks utterances with pauses of up to 1.2 s; the first and the last one may be cut off.
        15 % of the clips longer than 0.9 s begin or end with more than half a second of silence, and 5 %
        have no voice at all. 60 % get noise 15 to 60 dB below the speech, 20 % a gentle equaliser, and all
        a gain of -14 to 3 dB, or less if the peaks would exceed 0.99.

        Args:
            generator: the only source of randomness.
            seconds: length, 0.1 to 600; rounded to a whole number of samples.

        Raises:
            InputError: the length is outside its limits.
        """
        if not 0.1 <= seconds <= 600:
            raise InputError(f"a clip of {seconds} s cannot be mixed; its length should be 0.1 to 600 s")
        length = round(seconds * SAMPLE_RATE_HZ)
        clean: np.ndarray = np.zeros(length, np.float32)
        voice = None
        kind = generator.random()
        if kind >= _SILENT_SHARE:
            voice = list(self._by_voice)[generator.integers(len(self._by_voice))]
            longest_quiet = min(1.5, 0.6 * seconds)
            if kind < _SILENT_SHARE + _QUIET_EDGE_SHARE and longest_quiet > 0.55:
                # The utterances add 30 ms of silence.
                quiet = round(generator.uniform(0.5, longest_quiet) * SAMPLE_RATE_HZ)
                if generator.random() < 0.5:
                    clean[quiet:] = self._speech(generator, voice, length - quiet, "start")
                else:
                    clean[: length - quiet] = self._speech(generator, voice, length - quiet, "end")
            else:
                clean = self._speech(generator, voice, length, "anywhere")
        heard, tilt = clean, 0.0
        if generator.random() < _TILTED_SHARE:
            tilt = float(generator.uniform(-1.5, 1.5))
            heard = _tilted(clean, tilt)
        noise = ratio_db = None
        if generator.random() < _NOISY_SHARE:
            noise = _NOISES[generator.integers(len(_NOISES))]
            ratio_db = float(generator.uniform(*_RATIO_LIMITS_DB))
            level = (active_rms(heard) or 10 ** (LEVEL_DBFS / 20)) * 10 ** (-ratio_db / 20)
            heard = heard + np.float32(level) * self._noise(generator, noise, length)
        gain_db = float(generator.uniform(*_GAIN_LIMITS_DB))
        peak = max(float(np.abs(clean).max()), float(np.abs(heard).max()), 1e-9)
        gain_db = min(gain_db, float(20 * np.log10(0.99 / peak)))
        gain = np.float32(10 ** (gain_db / 20))
        return SpeechClip(clean * gain, heard * gain, voice, gain_db, noise, ratio_db, tilt)

    def _speech(self, generator: np.random.Generator, voice: str, length: int, whole: str) -> np.ndarray:
        """Speech and pauses of one voice, float32 (length,).

        `whole` is the end of the clip where utterances are not cut off: "start", "end", or "anywhere" for
        neither.
        """
        choices = self._by_voice[voice]
        parts: list[np.ndarray] = []
        missing = length
        while missing > 0:
            utterance = choices[generator.integers(len(choices))]
            if whole == "anywhere" and not parts and generator.random() < 0.7:
                utterance = utterance[generator.integers(len(utterance) * 7 // 10) :]
            part = utterance[-missing:] if whole == "end" else utterance[:missing]
            parts.append(_faded(part.astype(np.float32) / _FULL_SCALE))
            missing -= len(part)
            # Avoids an unintended long silence or a scrap of speech at the end.
            longest = min(_LONGEST_PAUSE_SECONDS * SAMPLE_RATE_HZ, missing - 0.3 * SAMPLE_RATE_HZ)
            pause = missing if missing <= 0.45 * SAMPLE_RATE_HZ else round(generator.uniform(0, longest))
            parts.append(np.zeros(pause, np.float32))
            missing -= pause
        return np.concatenate(parts[::-1] if whole == "end" else parts)

    def _noise(self, generator: np.random.Generator, noise: str, length: int) -> np.ndarray:
        """Noise with an RMS of 1, float32 (length,)."""
        if noise == "babble":
            signal = np.zeros(length)
            for _ in range(generator.integers(4, 8)):
                samples = self.utterances[generator.integers(len(self.utterances))].samples
                signal += np.resize(np.roll(samples, generator.integers(len(samples))), length)
        else:
            signal = generator.standard_normal(length)
            if noise == "pink":
                spectrum = np.fft.rfft(signal)
                frequencies_hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
                signal = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequencies_hz, 50)), length)
        return (signal / max(float(np.sqrt(np.mean(signal**2))), 1e-9)).astype(np.float32)


def _read_utterance(path: Path) -> np.ndarray:
    samples, rate_hz = _read_wav(path)
    if rate_hz != SAMPLE_RATE_HZ or not len(samples):
        raise InputError(f"{path} should hold sound at {SAMPLE_RATE_HZ} Hz; make the speech corpus again")
    return (samples * _FULL_SCALE).astype(np.int16)


def _tilted(samples: np.ndarray, tilt_db_per_octave: float) -> np.ndarray:
    """Apply an equaliser with gain 1 at 1 kHz, a constant slope from 100 Hz to 8 kHz, and flat beyond."""
    frequencies_hz = np.clip(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ), 100, 8_000)
    gain = 10 ** (tilt_db_per_octave * np.log2(frequencies_hz / 1_000) / 20)
    return np.fft.irfft(np.fft.rfft(samples) * gain, len(samples)).astype(np.float32)
