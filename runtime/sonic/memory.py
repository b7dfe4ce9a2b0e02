"""The memory and disk that a clip takes at its peak, counted from its plan."""

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
    """The submodel that needs most memory, and the bytes a clip then takes beside what the process holds.

    That is what grows with the clip and the largest stage: submodels of different stages are never in
    memory together. Bundles that do not say what their submodels take count with their weights. Of
    `together` clips like this one, a batch denoises and decodes as many at the same time as `run` allows.
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
    """Bytes of temporary files while `sonic generate` makes the clip."""
    return float(sum(size for size in _spool_sizes(manifest, plan) if size > DEFAULT_MEMORY_LIMIT_BYTES))


def check_memory(manifest: Manifest, plan: ClipPlan, run: RunOptions, together: int = 1) -> None:
    """Refuse now what would be killed for its memory after hours.

    Raises:
        InputError: the clip needs more than is free.
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
    """Every submodel of a stage with the bytes it takes at its peak."""
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
    """Bytes of what grows with a clip beside its frames; each is on disk beyond a spool's limit."""
    video = manifest.constants.video
    tokens = manifest.submodels["audio2token"].outputs[0].shape[2:]
    token_values = math.prod(int(size) for size in tokens)
    area = plan.size.height * plan.size.width // video.latent_stride_pixels**2
    latent_bytes = plan.generated_frames * video.latent_channels * area * _FLOAT32_BYTES
    # The latents, and the sums of a step's windows.
    return [plan.generated_frames * token_values * _FLOAT32_BYTES, latent_bytes, latent_bytes]
