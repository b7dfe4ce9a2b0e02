"""Several processes of ``sonic generate`` at once, compared with one that has the machine to itself."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sonic.progress import Progress
from sonic_convert.bench.commands import run_together
from sonic_convert.bench.presets import Case, Clip


@dataclass(frozen=True)
class CompanyTimes:
    """Runs of the same clip by several processes at once.

    Attributes:
        title: the bundle and its preset.
        seconds: of every run, from the start of all processes to the end of the last, by their number.
    """

    title: str
    seconds: dict[int, list[float]]

    def median(self, processes: int) -> float:
        """The median of the runs of so many processes."""
        return statistics.median(self.seconds[processes])

    def throughput(self, processes: int) -> float:
        """Clips per second of so many processes, relative to one alone: the median of the runs' ratios."""
        pairs = zip(self.seconds[1], self.seconds[processes], strict=True)
        return statistics.median(processes * alone / together for alone, together in pairs)


def bench_company(
    case: Case, clip: Clip, counts: Sequence[int], repeats: int, folder: Path, progress: Progress
) -> CompanyTimes:
    """Generate a clip in one process, and in several at once.

    Args:
        case: the bundle and its preset.
        clip: what each process generates, to a file of its own.
        counts: numbers of processes; one alone is always timed.
        repeats: of each number; they alternate.
        folder: for the videos.
        progress: shows the runs.

    Raises:
        SonicError: a command failed.
    """
    counts = sorted({1, *counts})
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            commands = [clip.command(case, folder / f"company{number}.mp4") for number in range(count)]
            with progress.stage(f"{case.title}, {count} at once", 1) as advance:
                seconds[count].append(run_together(commands))
                advance()
    return CompanyTimes(case.title, seconds)
