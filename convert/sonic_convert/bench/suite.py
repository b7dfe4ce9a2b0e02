"""Runs the parts of the benchmarks that are asked for, and collects their results."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sonic.bundle.presets import SPEED_NAMES
from sonic.bundle.store import find_bundle
from sonic.errors import warn
from sonic.model import load_model
from sonic.progress import Progress
from sonic_convert.bench.calls import ENGINES, CallTimes, bench_decoder, bench_unet
from sonic_convert.bench.clips import BatchTimes, bench_batch, bench_lengths
from sonic_convert.bench.commands import CommandRun
from sonic_convert.bench.company import CompanyTimes, bench_company
from sonic_convert.bench.presets import Clip, PresetTimes, bench_presets, choose_cases, make_clip
from sonic_convert.checkpoint.checkpoint import Checkpoint, find_checkpoint

#: The parts by their names on the command line: calls of the UNet and the VAE decoder; clips of several
#: lengths, and a batch; clips by preset and precision; several processes at once.
PARTS = ("calls", "clips", "presets", "company")
_DECODED_FRAMES = 2  # few, to be quick; a clip is decoded in chunks of eight
_BATCH_CLIPS = 4
_COMPANY_SPEED = "fast"
ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class BenchOptions:
    """What is measured.

    Attributes:
        checkpoint, bundle: a checkpoint and the bundle made from it.
        also: bundles of other precisions.
        parts: some of `PARTS`.
        engines: those of `ENGINES` that are timed beside the bundles.
        work: work folder of the conversion, for its unfused graph.
        frames, resolution_pixels: of a call of the UNet; `presets` and `company` have this resolution too.
        repeats: of a call.
        lengths: seconds of the clips of `clips`.
        speeds: presets of `presets` and `company`; see :func:`sonic_convert.bench.presets.choose_cases`.
        seconds: length of their speech.
        memory: memory mode of their runs, None for the default.
        clip_repeats: of each of their clips.
        torch_steps: denoising steps that PyTorch runs of a clip, None for all.
        processes: numbers of processes of `company`.
    """

    checkpoint: str
    bundle: str
    also: tuple[str, ...] = ()
    parts: tuple[str, ...] = PARTS
    engines: tuple[str, ...] = ENGINES
    work: Path | None = None
    frames: int = 8
    resolution_pixels: int = 256
    repeats: int = 5
    lengths: tuple[float, ...] = (6.0, 15.0, 30.0, 60.0)
    speeds: tuple[str, ...] = ()
    seconds: float = 2.0
    memory: str | None = None
    clip_repeats: int = 3
    torch_steps: int | None = None
    processes: tuple[int, ...] = (1, 2, 4)


@dataclass(frozen=True)
class Results:
    """What was measured; None or empty for the parts that were left out.

    Attributes:
        machine, bundle: their names.
        unet, vae_decoder: times of calls.
        clips: by seconds of speech.
        batch: several clips as one batch.
        presets: clips by preset and precision.
        company: several processes at once, by case.
    """

    machine: str
    bundle: str
    unet: CallTimes | None = None
    vae_decoder: CallTimes | None = None
    clips: dict[float, CommandRun] = field(default_factory=dict)
    batch: BatchTimes | None = None
    presets: PresetTimes | None = None
    company: list[CompanyTimes] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        values = asdict(self)
        return values | {"clips": {f"{seconds:g}": run for seconds, run in values["clips"].items()}}


def run_benchmarks(options: BenchOptions, progress: Progress) -> Results:
    """Run the parts that `options` name.

    Raises:
        InputError: an option cannot be used.
        BundleError: a bundle cannot be run.
        SonicError: a command failed.
    """
    checkpoint, bundle = find_checkpoint(options.checkpoint), find_bundle(options.bundle)
    bundles = [bundle, *(find_bundle(name) for name in options.also)]
    company = choose_cases(bundles, options.speeds or (_COMPANY_SPEED,))
    presets = choose_cases(bundles, options.speeds or SPEED_NAMES)
    results: dict[str, Any] = {}
    if "calls" in options.parts:
        results["unet"], results["vae_decoder"] = _bench_calls(options, checkpoint, bundles, progress)
    image, speech = ASSETS / "portrait.png", ASSETS / "speech.wav"
    with tempfile.TemporaryDirectory(prefix="sonic-bench-") as name:
        folder = Path(name)
        if "clips" in options.parts:
            results["clips"] = bench_lengths(bundle, image, speech, options.lengths, folder, progress)
            results["batch"] = bench_batch(bundle, image, speech, _BATCH_CLIPS, folder, progress)
        clip = _clip(options, image, speech, folder)
        if "presets" in options.parts:
            published = checkpoint if "pytorch" in options.engines else None
            results["presets"] = bench_presets(
                presets, clip, options.clip_repeats, folder, progress, published, options.torch_steps
            )
        if "company" in options.parts:
            results["company"] = [
                bench_company(case, clip, options.processes, options.clip_repeats, folder, progress)
                for case in company
            ]
    return Results(machine_name(), bundle.name, **results)


def _clip(options: BenchOptions, image: Path, speech: Path, folder: Path) -> Clip:
    run = ("--memory", options.memory) if options.memory else ()
    return make_clip(image, speech, options.seconds, options.resolution_pixels, folder, *run)


def _bench_calls(
    options: BenchOptions, checkpoint: Path, bundles: list[Path], progress: Progress
) -> tuple[CallTimes, CallTimes | None]:
    """One call of the UNet and, where there are several bundles, one of the VAE decoder."""
    work = options.work or bundles[0].with_name(f"{bundles[0].name}.work")
    unfused: Path | None = work / "unet" / "simplified" / "model.onnx"
    if unfused is not None and not unfused.is_file():
        if "unfused" in options.engines:
            warn(f"there is no {unfused}, so the unfused graph is left out (--work)")
        unfused = None
    model, *others = (load_model(bundle) for bundle in bundles)
    frames, resolution, repeats = options.frames, options.resolution_pixels, options.repeats
    unet = bench_unet(
        Checkpoint.open(checkpoint), model, unfused, frames, resolution, repeats, progress, others,
        options.engines,
    )  # fmt: skip
    decoder = None
    if others:
        decoder = bench_decoder(model, others, _DECODED_FRAMES, resolution, repeats, progress)
    return unet, decoder


def machine_name() -> str:
    """The processor's name, and the number of threads that PyTorch uses."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return f"{name}, {torch.get_num_threads()} threads"
