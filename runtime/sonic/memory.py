"""A clip's peak memory and temporary disk space, computed from its plan."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sonic.bundle.manifest import Manifest
from sonic.bundle.work import evaluate
from sonic.errors import InputError
from sonic.host import available_bytes
from sonic.plan import ClipPlan, Stage
from sonic.storage.spool import DEFAULT_MEMORY_LIMIT_BYTES

_FLOAT32_BYTES = 4


def peak_memory(
    manifest: Manifest,
    plan: ClipPlan,
    calls_at_once: Mapping[str, int],
    together: int = 1,
    in_batch: bool = False,
) -> tuple[str, float]:
    """The submodel at which memory peaks, and the bytes that clips then add to the process's memory.

    These are the part of the tokens, latents and frames that spools keep in memory, and the largest stage:
    submodels of different stages are not in memory together. A submodel whose memory the bundle does not
    state is counted with the size of its files.

    Args:
        manifest: the bundle's.
        plan: a clip's.
        calls_at_once: by submodel, where it is not one; there are never more than the plan has.
        together: how many clips like this one are denoised at the same time.
        in_batch: whether earlier clips are decoded while these are denoised.
    """
    groups = [[stage] for stage in plan.stages if not (in_batch and stage.several_clips)]
    if in_batch:
        groups.append([stage for stage in plan.stages if stage.several_clips])
    largest: dict[str, float] = {}
    held = 0.0
    for group in groups:
        found = [(stage, _submodel_peaks(manifest, stage, calls_at_once, together)) for stage in group]
        size = sum((sum if stage.loaded_together else max)(peaks.values()) for stage, peaks in found)
        if size > held:
            held = size
            largest = {name: peak for _, peaks in found for name, peak in peaks.items()}
    submodel = max(largest, key=lambda name: largest[name])
    frames = 3 * plan.size.height * plan.size.width * plan.shown_frames
    spooled = (*_spool_sizes(manifest, plan), frames)
    kept = together * sum(min(size, DEFAULT_MEMORY_LIMIT_BYTES) for size in spooled)
    return submodel, kept + held


def temporary_disk_bytes(manifest: Manifest, plan: ClipPlan) -> float:
    """Bytes of temporary files while `sonic generate` generates the clip."""
    return float(sum(size for size in _spool_sizes(manifest, plan) if size > DEFAULT_MEMORY_LIMIT_BYTES))


def check_memory(
    manifest: Manifest,
    plan: ClipPlan,
    calls_at_once: Mapping[str, int],
    together: int = 1,
    in_batch: bool = False,
) -> None:
    """Refuse a clip that would run out of memory, before hours are spent on it; see :func:`peak_memory`.

    Raises:
        InputError: the clip needs more memory than is free.
    """
    submodel, needed = peak_memory(manifest, plan, calls_at_once, together, in_batch)
    free, size = available_bytes(), plan.size
    if needed > free:
        fewer = any(count > 1 for count in calls_at_once.values())
        raise InputError(
            f"this clip of {size.seconds:.1f} s at {size.width}x{size.height} pixels needs about "
            f"{needed / 1e9:.2f} GB of memory (in '{submodel}'), but {free / 1e9:.2f} GB are free; "
            "choose a lower resolution" + (" or the memory mode 'low'" if fewer else "")
        )


def _submodel_peaks(
    manifest: Manifest, stage: Stage, calls_at_once: Mapping[str, int], together: int
) -> dict[str, float]:
    """Every submodel of a stage with its peak memory in bytes."""
    peaks: dict[str, float] = {}
    for calls in stage.calls:
        info = manifest.submodels[calls.submodel]
        peak = float(info.bytes)
        if info.work is not None:
            possible = calls.independent * (together if stage.several_clips else 1)
            at_once = min(calls_at_once.get(calls.submodel, 1), possible)
            peak = info.work.weight_bytes + at_once * evaluate(info.work.activation_bytes, calls.sizes)
        peaks[calls.submodel] = max(peaks.get(calls.submodel, 0.0), peak)
    return peaks


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
