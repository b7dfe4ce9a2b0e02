"""Clips of several lengths, and several clips as one batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sonic.progress import Progress
from sonic_convert.bench.commands import (
    CommandRun,
    generate_command,
    run_command,
    sonic_command,
    write_speech,
)


@dataclass(frozen=True)
class BatchTimes:
    """Several clips: each in a separate command, and all in one ``sonic batch``."""

    clips: int
    apart_seconds: float
    together_seconds: float


def bench_lengths(
    bundle: Path, image: Path, speech: Path, lengths: Sequence[float], folder: Path, progress: Progress
) -> dict[float, CommandRun]:
    """Run ``sonic generate`` for speech of every length in seconds, which repeats `speech`."""
    runs = {}
    with progress.stage("clips", len(lengths)) as advance:
        for seconds in lengths:
            part = folder / f"speech{seconds:g}.wav"
            write_speech(speech, seconds, part)
            runs[seconds] = run_command(
                generate_command(bundle, image, part, folder / f"clip{seconds:g}.mp4")
            )
            advance()
    return runs


def bench_batch(
    bundle: Path, image: Path, speech: Path, clips: int, folder: Path, progress: Progress, *options: str
) -> BatchTimes:
    """Time the same clips one command after another, and as one batch with `options`."""
    jobs = folder / "jobs.jsonl"
    lines = [
        {"image": str(image.absolute()), "audio": str(speech.absolute()), "output": f"batch{seed}.mp4",
         "seed": seed}
        for seed in range(clips)
    ]  # fmt: skip
    jobs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with progress.stage("batch", clips + 1) as advance:
        apart = 0.0
        for seed in range(clips):
            output = folder / f"apart{seed}.mp4"
            command = generate_command(bundle, image, speech, output, "--seed", str(seed))
            apart += run_command(command).seconds
            advance()
        together = run_command(sonic_command("batch", str(jobs), "--bundle", str(bundle), *options)).seconds
        advance()
    return BatchTimes(clips, apart, together)
