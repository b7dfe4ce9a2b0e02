"""A clip's peak memory and temporary disk space, computed from its plan."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sonic.bundle.manifest import Manifest
from sonic.bundle.work import evaluate
from sonic.errors import InputError
from sonic.host import available_bytes
from sonic.options import RunOptions
from sonic.plan import ClipPlan, Stage
from sonic.storage.spool import DEFAULT_MEMORY_LIMIT_BYTES

_FLOAT32_BYTES = 4


def peak_memory(manifest: Manifest, plan: ClipPlan, run: RunOptions, together: int = 1) -> tuple[str, float]:
    """The submodel at which memory peaks, and the bytes that the clip then adds to the process's memory.

    These are the part of the tokens, latents and frames that spools keep in memory, and the largest stage:
    submodels of different stages are never in memory together. A submodel whose memory the bundle does not
    state is counted with the size of its files. A batch of `together` clips like this one runs as many calls
    for them at the same time as `run` allows.
    """
    stages = [list(_submodel_peaks(manifest, stage, run, together)) for stage in plan.stages]
    held = [
        sum(peak for _, peak in peaks) if stage.loaded_together else max(peak for _, peak in peaks)
        for stage, peaks in zip(plan.stages, stages, strict=True)
    ]
    largest = held.index(max(held))
    submodel, _ = max(stages[largest], key=lambda named: named[1])
    frames = 3 * plan.size.height * plan.size.width * plan.shown_frames
    spooled = (*_spool_sizes(manifest, plan), frames)
    return submodel, sum(min(size, DEFAULT_MEMORY_LIMIT_BYTES) for size in spooled) + held[largest]


def temporary_disk_bytes(manifest: Manifest, plan: ClipPlan) -> float:
    """Bytes of temporary files while `sonic generate` generates the clip."""
    return float(sum(size for size in _spool_sizes(manifest, plan) if size > DEFAULT_MEMORY_LIMIT_BYTES))


def check_memory(manifest: Manifest, plan: ClipPlan, run: RunOptions, together: int = 1) -> None:
    """Refuse a clip that would run out of memory, before hours are spent on it.

    Raises:
        InputError: the clip needs more memory than is free.
    """
    submodel, needed = peak_memory(manifest, plan, run, together)
    free, size = available_bytes(), plan.size
    if needed > free:
        raise InputError(
            f"this clip of {size.seconds:.1f} s at {size.width}x{size.height} pixels needs about "
            f"{needed / 1e9:.2f} GB of memory (in '{submodel}'), but {free / 1e9:.2f} GB are free; "
            "choose a lower resolution" + ("" if run.memory == "low" else " or the memory mode 'low'")
        )


def _submodel_peaks(
    manifest: Manifest, stage: Stage, run: RunOptions, together: int
) -> Iterator[tuple[str, float]]:
    """Yield every submodel of a stage with its peak memory in bytes."""
    peaks: dict[str, float] = {}
    for calls in stage.calls:
        info = manifest.submodels[calls.submodel]
        peak = float(info.bytes)
        if info.work is not None:
            possible = calls.independent * (together if stage.several_clips else 1)
            at_once = min(run.calls_at_once, possible)
            peak = info.work.weight_bytes + at_once * evaluate(info.work.activation_bytes, calls.sizes)
        peaks[calls.submodel] = max(peaks.get(calls.submodel, 0.0), peak)
    yield from peaks.items()


def _spool_sizes(manifest: Manifest, plan: ClipPlan) -> list[int]:
    """Bytes of each array that grows with a clip, except its frames; above a spool's limit it is on disk."""
    video = manifest.constants.video
    tokens = manifest.submodels["audio2token"].outputs[0].shape[2:]
    token_values = math.prod(int(size) for size in tokens)
    area = plan.size.height * plan.size.width // video.latent_stride_pixels**2
    latent_bytes = plan.generated_frames * video.latent_channels * area * _FLOAT32_BYTES
    # The latents and the differences that are reused, each with the sums of a step's windows.
    kept = 1 + plan.denoising.keeps_image + plan.denoising.keeps_audio
    return [plan.generated_frames * token_values * _FLOAT32_BYTES, *[latent_bytes] * (2 * kept)]
