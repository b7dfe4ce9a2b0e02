"""The memory that a clip takes at its peak."""

from __future__ import annotations

import numpy as np

from sonic.bundle.manifest import Manifest
from sonic.bundle.work import evaluate
from sonic.options import RunOptions
from sonic.plan import ClipSize, submodel_calls
from sonic.storage.spool import DEFAULT_MEMORY_LIMIT_BYTES

_HEAVY = ("unet", "vae_decoder", "frame_interpolator")


_BYTES = 4


def peak_memory(manifest: Manifest, clip: ClipSize, run: RunOptions, together: int = 1) -> tuple[str, float]:
    """The submodel that needs most memory, and what the clip then takes beside `base_bytes`.

    That is what grows with the clip and the largest submodel in use: submodels are loaded one after
    another, but for the decoder and the interpolator. Bundles that do not say what their submodels
    take count with their weights. Of `together` clips like this one, a batch calls the UNet for as many
    windows at the same time as `run` allows, and decodes as many.
    """
    constants = manifest.constants
    peaks: dict[str, float] = {}
    for name, sizes, count in submodel_calls(constants, clip, run):
        info = manifest.submodels[name]
        peak = float(info.bytes)
        if info.work is not None:
            calls = together * (count if name == "unet" else 1) if name in _HEAVY else 1
            at_once = min(run.calls_at_once, calls)
            peak = info.work.weight_bytes + at_once * evaluate(info.work.activation_bytes, sizes)
        peaks[name] = max(peaks.get(name, 0.0), peak)
    if "frame_interpolator" in peaks:
        peaks["vae_decoder"] += peaks.pop("frame_interpolator")
    stage = max(peaks, key=lambda name: peaks[name])
    frames = 3 * clip.height * clip.width * clip.shown_frames(constants)
    spooled = (*spooled_bytes(manifest, clip), frames)
    return stage, sum(min(size, DEFAULT_MEMORY_LIMIT_BYTES) for size in spooled) + peaks[stage]


def spooled_bytes(manifest: Manifest, clip: ClipSize) -> list[int]:
    """What grows with a clip beside its frames, each of which is on disk beyond a spool's limit."""
    constants = manifest.constants
    frames, video = clip.generated_frames(constants), constants.video
    tokens = manifest.submodels["audio2token"].outputs[0].shape[2:]
    latent = video.latent_channels * clip.height * clip.width // video.latent_stride_pixels**2
    return [
        frames * int(np.prod([int(size) for size in tokens])) * _BYTES,
        frames * latent * _BYTES,
        frames * latent * _BYTES,  # what a step makes of them
    ]


def base_bytes() -> int:
    """What this process holds before a submodel is loaded: Python, NumPy, ONNX Runtime and PyAV."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))
