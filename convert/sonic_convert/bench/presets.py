"""Whole clips by preset and precision, beside PyTorch with the published sampler.

Every clip is a process of its own that reads a portrait and a recording and writes an MP4. Runs alternate, so
that other load on the machine affects all alike; the results are medians of ratios.

A published sampler of 25 steps may take PyTorch more than an hour. Its denoising can therefore be measured
with fewer steps, which all cost the same, and multiplied; everything else is measured whole.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sonic.bundle.constants import GUIDANCE_BRANCHES
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.presets import SPEED_NAMES
from sonic.costs.comparison import precision_of
from sonic.diffusion.steps import evaluations_per_window
from sonic.errors import InputError
from sonic.options import GenerationOptions
from sonic.plan import denoising_steps
from sonic.progress import Progress
from sonic_convert.bench.commands import CommandRun, generate_command, run_command, write_speech

PUBLISHED = "PyTorch, published sampler"
_DENOISING = "denoising"  # the stage of the runtime
_PUBLISHED_DENOISING = "torch: denoising"  # that of `TorchReference`


@dataclass(frozen=True)
class Case:
    """A bundle and one of its presets.

    Attributes:
        bundle: its folder.
        precision: of its UNet.
        speed: the preset's name.
        evaluations: of the UNet for each window, summed over the guidance branches.
    """

    bundle: Path
    precision: str
    speed: str
    evaluations: int

    @property
    def title(self) -> str:
        """For the report."""
        return f"{self.bundle.name} ({self.precision}), {self.speed}"


@dataclass(frozen=True)
class Clip:
    """The clip that is generated.

    Attributes:
        image, speech: its inputs.
        seconds: length of the speech.
        resolution_pixels: of the video.
        options: further options of ``sonic generate``.
    """

    image: Path
    speech: Path
    seconds: float
    resolution_pixels: int
    options: tuple[str, ...] = ()

    def command(self, case: Case, output: Path) -> list[str]:
        """The command that generates it."""
        return generate_command(
            case.bundle, self.image, self.speech, output,
            "--speed", case.speed, "--resolution", str(self.resolution_pixels), *self.options,
        )  # fmt: skip


@dataclass(frozen=True)
class ClipRuns:
    """The runs of one case.

    Attributes:
        title: for the report.
        evaluations: of the UNet for each window.
        seconds: of every run.
        stages: seconds of the stages of the last run.
        peak_bytes: the largest resident memory of any run.
    """

    title: str
    evaluations: int
    seconds: list[float]
    stages: dict[str, float]
    peak_bytes: int

    @property
    def denoising_seconds(self) -> float:
        """Of the last run."""
        return self.stages.get(_DENOISING, self.stages.get(_PUBLISHED_DENOISING, 0.0))

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.seconds)

    def speed_up(self, base: ClipRuns) -> float:
        """How many times as fast as `base` this is: the median of the ratios of their runs."""
        pairs = zip(base.seconds, self.seconds, strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)


@dataclass(frozen=True)
class PresetTimes:
    """Clips by preset and precision.

    Attributes:
        speech_seconds, resolution_pixels: the clip.
        presets: by case.
        published: PyTorch with the published sampler, if it was timed.
        steps: the number of denoising steps of the published sampler.
        measured_steps: how many of them PyTorch ran; its denoising was multiplied for the rest.
    """

    speech_seconds: float
    resolution_pixels: int
    presets: list[ClipRuns] = field(default_factory=list)
    published: ClipRuns | None = None
    steps: int = 0
    measured_steps: int = 0


def choose_cases(bundles: Sequence[Path], speeds: Sequence[str]) -> list[Case]:
    """The cases of bundles.

    Args:
        bundles: their folders.
        speeds: presets of all bundles, such as "fast", or of one, such as "NAME:fast".

    Raises:
        InputError: there is no such preset or bundle.
    """
    cases: dict[Case, None] = {}
    for bundle in bundles:
        manifest = read_manifest(bundle)
        for text in speeds:
            name, _, speed = text.rpartition(":")
            if speed not in SPEED_NAMES or (name and name not in {other.name for other in bundles}):
                raise InputError(
                    f"speed is {text!r}, but should be one of {', '.join(SPEED_NAMES)}, or of one bundle, "
                    f"such as {bundles[-1].name}:{SPEED_NAMES[-1]}"
                )
            if not name or name == bundle.name:
                steps = denoising_steps(manifest, GenerationOptions(speed=speed))
                precision = precision_of(manifest)
                cases[Case(bundle, precision, speed, evaluations_per_window(steps))] = None
    return list(cases)


def bench_presets(
    cases: Sequence[Case],
    clip: Clip,
    repeats: int,
    folder: Path,
    progress: Progress,
    checkpoint: Path | None = None,
    measured_steps: int | None = None,
) -> PresetTimes:
    """Generate a clip in every case, `repeats` times.

    Args:
        cases: of bundles of one checkpoint.
        clip: what is generated.
        repeats: of each case; runs alternate.
        folder: for the videos.
        progress: shows the runs.
        checkpoint: generates the clip in PyTorch too, with the published sampler; None leaves it out.
        measured_steps: how many denoising steps PyTorch runs; all by default.

    Raises:
        SonicError: a command failed.
    """
    steps = read_manifest(cases[0].bundle).constants.sampler.steps
    measured = min(measured_steps or steps, steps)
    runs: dict[Case, list[CommandRun]] = {case: [] for case in cases}
    published: list[CommandRun] = []
    for _ in range(repeats):
        if checkpoint is not None:
            command = published_command(checkpoint, clip, folder / "published.mp4", measured)
            with progress.stage(f"{PUBLISHED}, {measured} of {steps} steps", 1) as advance:
                published.append(with_all_steps(run_command(command), measured, steps))
                advance()
        for number, case in enumerate(cases):
            with progress.stage(case.title, 1) as advance:
                runs[case].append(run_command(clip.command(case, folder / f"preset{number}.mp4")))
                advance()
    return PresetTimes(
        clip.seconds,
        clip.resolution_pixels,
        [_summary(case.title, case.evaluations, runs[case]) for case in cases],
        _summary(PUBLISHED, GUIDANCE_BRANCHES * steps, published) if published else None,
        steps,
        measured,
    )


def published_command(checkpoint: Path, clip: Clip, output: Path, steps: int) -> list[str]:
    """The command that generates a clip in PyTorch, with a number of steps."""
    return [
        sys.executable, "-m", "sonic_convert.bench.run_published", str(checkpoint), str(clip.image),
        str(clip.speech), str(output), str(clip.resolution_pixels), str(steps),
    ]  # fmt: skip


def with_all_steps(run: CommandRun, measured: int, steps: int) -> CommandRun:
    """A run of PyTorch with `measured` steps, as it would be with all: every step costs the same."""
    if measured == steps:
        return run
    added = run.stages[_PUBLISHED_DENOISING] * (steps / measured - 1)
    stages = run.stages | {_PUBLISHED_DENOISING: run.stages[_PUBLISHED_DENOISING] + added}
    return CommandRun(run.seconds + added, stages, run.memory)


def make_clip(
    image: Path, speech: Path, seconds: float, resolution_pixels: int, folder: Path, *options: str
) -> Clip:
    """A clip whose speech repeats a recording up to `seconds`; it is written to the folder."""
    part = folder / "speech.wav"
    write_speech(speech, seconds, part)
    return Clip(image, part, seconds, resolution_pixels, options)


def _summary(title: str, evaluations: int, runs: Sequence[CommandRun]) -> ClipRuns:
    peak = max(run.peak_bytes for run in runs)
    return ClipRuns(title, evaluations, [run.seconds for run in runs], runs[-1].stages, peak)
