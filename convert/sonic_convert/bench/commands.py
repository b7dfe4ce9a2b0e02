"""Whole commands, measured from outside: seconds by stage, and resident memory over time (Linux)."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from sonic.errors import SonicError

_STAGE = re.compile(r"^(?P<name>[a-z :]+): \d+ in (?P<seconds>[\d.]+) s$", re.MULTILINE)
_SAMPLE_SECONDS = 0.1
_END_SECONDS = 10


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


def run_command(command: Sequence[str]) -> CommandRun:
    """Run a command and watch it.

    Raises:
        SonicError: it failed.
    """
    memory: list[tuple[float, int]] = []
    started = time.perf_counter()
    with _running(command) as (process, errors):
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            match = re.search(r"VmRSS:\s+(\d+)", status.read_text(encoding="ascii"))
            if match:
                memory.append((time.perf_counter() - started, int(match[1]) * 1024))
            time.sleep(_SAMPLE_SECONDS)
        seconds = time.perf_counter() - started
        text = _finished(process, errors, command)
    stages = {match["name"]: float(match["seconds"]) for match in _STAGE.finditer(text)}
    return CommandRun(seconds, stages, memory)


def run_together(commands: Sequence[Sequence[str]]) -> float:
    """Start commands at the same time, and return the seconds until the last of them ends.

    Raises:
        SonicError: one failed; the others are ended.
    """
    with ExitStack() as stack:
        started = time.perf_counter()
        running = [stack.enter_context(_running(command)) for command in commands]
        for process, _ in running:
            process.wait()
        seconds = time.perf_counter() - started
        for (process, errors), command in zip(running, commands, strict=True):
            _finished(process, errors, command)
    return seconds


@contextmanager
def _running(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
    """A running command and what it writes to standard error; it is ended with the block."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            yield process, errors
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _finished(process: subprocess.Popen[bytes], errors: IO[str], command: Sequence[str]) -> str:
    """What a command wrote to standard error."""
    errors.seek(0)
    text = errors.read()
    if process.returncode != 0:
        raise SonicError(f"'{' '.join(command[1:])}' failed ({text.strip()[-300:]})")
    return text


def generate_command(bundle: Path, image: Path, speech: Path, output: Path, *options: str) -> list[str]:
    """``sonic generate`` as a command."""
    return sonic_command(
        "generate", "--bundle", str(bundle), "--image", str(image), "--audio", str(speech),
        "--output", str(output), *options,
    )  # fmt: skip


def sonic_command(*arguments: str) -> list[str]:
    """The runtime's command with arguments, in this environment."""
    return [sys.executable, "-m", "sonic", *arguments]


def write_speech(source: Path, seconds: float, target: Path) -> None:
    """Write a WAV file that repeats another one up to a length."""
    with wave.open(str(source)) as file:
        parameters, data = file.getparams(), file.readframes(file.getnframes())
    samples = np.frombuffer(data, np.uint8).reshape(-1, parameters.sampwidth * parameters.nchannels)
    with wave.open(str(target), "wb") as file:
        file.setparams(parameters)
        count = round(seconds * parameters.framerate)
        file.writeframes(np.resize(samples, (count, samples.shape[1])).tobytes())
