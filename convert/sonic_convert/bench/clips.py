"""Whole commands, measured from outside: seconds by stage, and resident memory over time (Linux)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonic.errors import SonicError

_STAGE = re.compile(r"^(?P<name>[a-z ]+): \d+ in (?P<seconds>[\d.]+) s$", re.MULTILINE)
_SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class CommandRun:
    """The measurements of a command.

    Attributes:
        seconds: from start to end.
        stages: seconds of the stages that it reported.
        memory: (seconds since the start, resident bytes), sampled.
    """

    seconds: float
    stages: dict[str, float]
    memory: list[tuple[float, int]]

    @property
    def peak_bytes(self) -> int:
        """The largest sample."""
        return max(size for _, size in self.memory)


def run_command(arguments: list[str]) -> CommandRun:
    """Run ``python -m sonic`` with `arguments` and watch it.

    Raises:
        SonicError: it failed.
    """
    memory: list[tuple[float, int]] = []
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "sonic", *arguments], stdout=subprocess.DEVNULL, stderr=errors
        )
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            match = re.search(r"VmRSS:\s+(\d+)", status.read_text(encoding="ascii"))
            if match:
                memory.append((time.perf_counter() - started, int(match[1]) * 1024))
            time.sleep(_SAMPLE_SECONDS)
        seconds = time.perf_counter() - started
        errors.seek(0)
        text = errors.read()
    if process.returncode != 0:
        raise SonicError(f"'sonic {' '.join(arguments)}' failed ({text.strip()[-300:]})")
    stages = {match["name"]: float(match["seconds"]) for match in _STAGE.finditer(text)}
    return CommandRun(seconds, stages, memory)


def write_speech(source: Path, seconds: float, target: Path) -> None:
    """Write a WAV file that repeats another one up to a length."""
    with wave.open(str(source)) as file:
        parameters, data = file.getparams(), file.readframes(file.getnframes())
    samples = np.frombuffer(data, np.uint8).reshape(-1, parameters.sampwidth * parameters.nchannels)
    with wave.open(str(target), "wb") as file:
        file.setparams(parameters)
        count = round(seconds * parameters.framerate)
        file.writeframes(np.resize(samples, (count, samples.shape[1])).tobytes())


def generate(bundle: Path, image: Path, speech: Path, output: Path, *options: str) -> CommandRun:
    """Run ``sonic generate`` once."""
    return run_command(
        ["generate", "--bundle", str(bundle), "--image", str(image), "--audio", str(speech),
         "--output", str(output), *options]
    )  # fmt: skip


@dataclass(frozen=True)
class BatchTimes:
    """Several clips: each in a separate command, and all in one ``sonic batch``."""

    clips: int
    apart_seconds: float
    together_seconds: float


def bench_batch(
    bundle: Path, image: Path, speech: Path, clips: int, folder: Path, *options: str
) -> BatchTimes:
    """Time the same clips one command after another, and as one batch."""
    jobs = folder / "jobs.jsonl"
    lines = [
        {"image": str(image.absolute()), "audio": str(speech.absolute()), "output": f"batch{seed}.mp4",
         "seed": seed}
        for seed in range(clips)
    ]  # fmt: skip
    jobs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    apart = sum(
        generate(bundle, image, speech, folder / f"apart{seed}.mp4", "--seed", str(seed)).seconds
        for seed in range(clips)
    )
    together = run_command(["batch", str(jobs), "--bundle", str(bundle), *options]).seconds
    return BatchTimes(clips, apart, together)
