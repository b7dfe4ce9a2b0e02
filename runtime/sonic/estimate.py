"""What a clip costs before it is made: operations, seconds, memory, disk and energy.

    estimate = estimate_clip(model.manifest, ClipSize(60.0, 512, 512, 25), MACHINES["kunpeng920"])

Operations follow from the bundle's own counts (`sonic.work`), seconds from what a machine reaches.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonic.constants import Constants
from sonic.engine import Engine
from sonic.errors import BundleError
from sonic.face import detector_size
from sonic.machines import Machine, machine_at_hand
from sonic.manifest import Manifest
from sonic.options import BALANCED, RunOptions
from sonic.sampler import needed_branches, window_indices
from sonic.schedule import guidance_scales
from sonic.spool import DEFAULT_MEMORY_LIMIT_BYTES
from sonic.video import save_video
from sonic.work import evaluate

_HEAVY = ("unet", "vae_decoder", "frame_interpolator")  # above 99 % of the work of any clip
_BYTES = 4  # of a float32


@dataclass(frozen=True)
class ClipSize:
    """How long and how large a clip is; pixels are multiples of 64."""

    seconds: float
    width: int
    height: int
    steps: int

    def generated_frames(self, constants: Constants) -> int:
        """Frames that are denoised."""
        return max(1, int(self.seconds * constants.video.generated_frame_rate_hz))

    def shown_frames(self, constants: Constants) -> int:
        """Frames of the video."""
        return max(1, round(self.seconds * constants.video.frame_rate_hz))


@dataclass(frozen=True)
class Estimate:
    """What a clip costs on a machine.

    Attributes:
        flop: operations by submodel.
        seconds: by submodel, and "encoding".
        peak_bytes: resident memory.
        peak_stage: the submodel during which it is reached.
        disk_bytes: temporary files while `sonic generate` makes the clip. Where frames are kept before they
            are encoded (batches, lip-sync correction, `SonicModel.generate`), it is 3 bytes a pixel more.
        joules: of the processor.
    """

    flop: dict[str, float]
    seconds: dict[str, float]
    peak_bytes: float
    peak_stage: str
    disk_bytes: float
    joules: float

    @property
    def total_seconds(self) -> float:
        """From the start to the finished file."""
        return sum(self.seconds.values())


def submodel_calls(
    constants: Constants, clip: ClipSize, run: RunOptions = BALANCED
) -> Iterator[tuple[str, dict[str, int], int]]:
    """Every kind of call that a clip needs: submodel, sizes of its dynamic axes, how often."""
    video, audio = constants.video, constants.audio
    frames = clip.generated_frames(constants)
    height, width = (side // video.latent_stride_pixels for side in (clip.height, clip.width))
    picture = {"height": clip.height, "width": clip.width, "count": 1}
    detector_height, detector_width = detector_size(clip.height, clip.width, constants.face)
    yield "face_detector", {"height": detector_height, "width": detector_width}, 1
    yield "image_encoder", {}, 1
    yield "vae_encoder", picture, 1
    window_seconds = audio.window_samples / audio.sample_rate_hz
    yield "audio_encoder", {}, int(np.ceil(clip.seconds / window_seconds))
    for name in ("audio2token", "audio2bucket"):
        yield name, {"frames": frames}, 1
    window = {"frames": constants.sampler.window_frames, "height": height, "width": width}
    windows = len(window_indices(frames, 0, constants.sampler))
    scales = (constants.sampler.image_guidance, constants.sampler.audio_guidance)
    for image_scale, audio_scale in zip(*(guidance_scales(s, clip.steps) for s in scales), strict=True):
        needed = len(needed_branches(image_scale, audio_scale))
        whole, rest = divmod(needed, run.branches_at_once)
        if whole:
            yield "unet", window | {"batch": run.branches_at_once}, windows * whole
        if rest:
            yield "unet", window | {"batch": rest}, windows
    whole, rest = divmod(frames, video.decode_chunk_frames)
    latent = {"height": height, "width": width}
    if whole:
        yield "vae_decoder", latent | {"count": video.decode_chunk_frames}, whole
    if rest:
        yield "vae_decoder", latent | {"count": rest}, 1
    if video.interpolation_factor == 2 and frames > 1:
        yield "frame_interpolator", picture, frames - 1


def estimate_clip(
    manifest: Manifest, clip: ClipSize, machine: Machine, run: RunOptions = BALANCED
) -> Estimate:
    """What a clip costs.

    Raises:
        BundleError: the bundle was made by a version that did not count its work.
    """
    constants = manifest.constants
    flop: dict[str, float] = {}
    for name, sizes, count in submodel_calls(constants, clip, run):
        work = manifest.submodels[name].work
        if work is None:
            raise BundleError(
                f"the bundle {manifest.name} does not say what its submodels compute; convert the "
                "checkpoint again with this version"
            )
        flop[name] = flop.get(name, 0.0) + count * sum(work.flop_of(sizes).values())
    pixels = clip.height * clip.width * clip.shown_frames(constants)
    seconds = {name: value / machine.flop_per_second(name) for name, value in flop.items()}
    seconds["encoding"] = pixels / 1e6 * machine.encode_seconds_per_megapixel
    total = sum(seconds.values())
    stage, needed = peak_memory(manifest, clip, run)
    return Estimate(
        flop=flop,
        seconds=seconds,
        peak_bytes=base_bytes() + needed,
        peak_stage=stage,
        disk_bytes=float(
            sum(size for size in _spooled_bytes(manifest, clip) if size > DEFAULT_MEMORY_LIMIT_BYTES)
        ),
        joules=total * machine.watts,
    )


def peak_memory(
    manifest: Manifest, clip: ClipSize, run: RunOptions, together: int = 1
) -> tuple[str, float]:
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
    spooled = (*_spooled_bytes(manifest, clip), frames)
    return stage, sum(min(size, DEFAULT_MEMORY_LIMIT_BYTES) for size in spooled) + peaks[stage]


def _spooled_bytes(manifest: Manifest, clip: ClipSize) -> list[int]:
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


def calibrate(engine: Engine, clip: ClipSize, seconds: float = 10.0) -> Machine:
    """Measure what this machine reaches: the heavy submodels on small inputs, and the encoder.

    Each submodel runs at the clip's resolution where that is likely to fit into its share of the time,
    and with fewer frames or pixels else.

    Raises:
        BundleError: as `estimate_clip`.
    """
    manifest = engine.bundle.manifest
    efficiency: dict[str, float] = {}
    for name in _HEAVY:
        sizes = [s for n, s, _ in submodel_calls(manifest.constants, clip) if n == name]
        if sizes:
            efficiency[name] = _reached(engine, name, sizes[0], seconds / (len(_HEAVY) + 1)) / 1e9
    efficiency["other"] = min(efficiency.values())
    return machine_at_hand(1, efficiency, _encoding(clip, seconds / (len(_HEAVY) + 1)))


def _reached(engine: Engine, name: str, sizes: dict[str, int], budget_seconds: float) -> float:
    """Operations a second of one submodel."""
    info = engine.bundle.manifest.submodels[name]
    assert info.work is not None
    generator = np.random.default_rng(0)

    def feeds(axes: dict[str, int]) -> dict[str, np.ndarray]:
        named = axes | {f"{axis}_{level}": axes[axis] >> level for axis in ("height", "width")
                        for level in range(8)}  # fmt: skip
        return {
            tensor.name: generator.standard_normal(
                [named[size] if isinstance(size, str) else size for size in tensor.shape]
            ).astype(np.float32)
            for tensor in info.inputs
        }

    small = sizes | ({"frames": 2, "batch": 1} if "frames" in sizes else {})
    with engine.open(name) as session:

        def run(values: dict[str, np.ndarray]) -> float:
            started = time.perf_counter()
            session.run(values)
            return time.perf_counter() - started

        work = {key: sum(info.work.flop_of(axes).values()) for key, axes in
                (("small", small), ("whole", sizes))}  # fmt: skip
        values = feeds(small)
        run(values)  # the first call allocates
        taken = run(values)
        if taken * work["whole"] / work["small"] > budget_seconds:
            return work["small"] / taken
        values = feeds(sizes)
        run(values)
        times = [run(values)]
        while sum(times) + times[-1] < budget_seconds - taken:
            times.append(run(values))
        return work["whole"] / float(np.median(times))


def _encoding(clip: ClipSize, budget_seconds: float) -> float:
    """Seconds for a megapixel of video: a picture that moves, at the clip's size."""
    rows, columns = np.mgrid[0 : clip.height, 0 : clip.width]
    frames = np.stack(
        [
            np.stack([(rows + 2 * shift) % 256, (columns + shift) % 256, (rows + columns) % 256], -1)
            for shift in range(25)
        ]
    ).astype(np.uint8)
    with tempfile.TemporaryDirectory(prefix="sonic-estimate-") as folder:
        started = time.perf_counter()
        done = 0
        while not done or (time.perf_counter() - started) * (done + 1) / done < budget_seconds:
            save_video(frames, Path(folder) / "probe.mp4", frame_rate_hz=25)
            done += 1
        taken = time.perf_counter() - started
    return taken / done / (frames.size / 3 / 1e6)


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or its control group's if that is less."""
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
        cached = int(counts["inactive_file"]) + int(counts["active_file"])  # given back when needed
        if limit != "max":
            available = min(available, int(limit) - used + cached)
    except (OSError, ValueError, KeyError):  # no control groups of version 2
        pass
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return available if soft == resource.RLIM_INFINITY else min(available, soft)
