"""Comparing a bundle, as this machine runs it, with what PyTorch computed when the bundle was made.

    verification = verify_bundle(load_model("sonic-base"))
    verification.passed

A bundle contains, for every submodel, inputs from a real clip with PyTorch's outputs for them, and that
short clip with the frames that PyTorch generates (:mod:`sonic.verification.golden`). A server can thus accept
a bundle without PyTorch: each submodel has to stay within its tolerance, the clip has to reach its PSNR, and
every value has to be finite. The tolerances are in the manifest; `sonic_convert.parity.golden` says where
they come from. All of this is about the published sampler, whatever the bundle's default speed preset: how
close a preset comes to it is a measurement of its own, on demand.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest import GoldenClip, VerificationInfo
from sonic.bundle.presets import EXACT_SPEED, SpeedName
from sonic.diffusion.steps import evaluations_per_window
from sonic.engines.base import Engine
from sonic.engines.checked import NotFinite
from sonic.errors import BundleError
from sonic.model import SonicModel
from sonic.options import GenerationOptions
from sonic.plan import denoising_steps
from sonic.prepared_clip import ClipRequest
from sonic.progress import NoProgress, Progress
from sonic.verification.compare import compare, psnr_db
from sonic.verification.golden import ExpectedClip, GoldenVectors


@dataclass(frozen=True)
class SubmodelVerification:
    """The result of a submodel on its golden inputs; the worst of several outputs.

    Attributes:
        name: the submodel.
        max_abs, relative_l2: the largest absolute difference from PyTorch, and the difference's norm over
            that of PyTorch's output; infinite if an output holds a value that is not finite.
        when_made: the relative L2 on the machine that made the bundle.
        tolerance: the largest relative L2 that passes.
    """

    name: str
    max_abs: float
    relative_l2: float
    when_made: float
    tolerance: float

    @property
    def finite(self) -> bool:
        """Whether every value of every output is finite."""
        return bool(np.isfinite(self.relative_l2))

    @property
    def passed(self) -> bool:
        """Whether the outputs are finite and within the tolerance."""
        return self.finite and self.relative_l2 <= self.tolerance


@dataclass(frozen=True)
class ClipVerification:
    """The result for the golden clip.

    Attributes:
        psnr_db: PSNR of all frames against PyTorch's; None if the clip could not be generated.
        when_made: the PSNR (dB) on the machine that made the bundle.
        minimum_psnr_db: the lowest PSNR that passes.
        problem: why the clip could not be generated, or None.
    """

    psnr_db: float | None
    when_made: float
    minimum_psnr_db: float
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the clip was generated and its PSNR is high enough."""
        return self.psnr_db is not None and self.psnr_db >= self.minimum_psnr_db


@dataclass(frozen=True)
class PresetVerification:
    """How close a speed preset comes to the published sampler, both on this machine, in the golden clip.

    The published sampler takes the bundle's number of steps here, not the few of the golden clip itself:
    that is what the preset stands for.

    Attributes:
        speed: the preset's name.
        evaluations, published_evaluations: how often the UNet is evaluated for a window.
        psnr_db, worst_psnr_db: PSNR of all frames, and of the frame that is farthest off; None if a clip
            could not be generated.
        minimum_psnr_db: the lowest PSNR of all frames that passes; None if the bundle's tuning states none,
            and the numbers are only reported.
        problem: why a clip could not be generated, or None.
    """

    speed: SpeedName
    evaluations: int
    published_evaluations: int
    psnr_db: float | None
    worst_psnr_db: float | None
    minimum_psnr_db: float | None
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the clips were generated and are as close as the tuning says, if it says anything."""
        return self.psnr_db is not None and self.psnr_db >= (self.minimum_psnr_db or 0)


@dataclass(frozen=True)
class Verification:
    """Everything that was compared; `frames`, `height`, `width` and `steps` are the clip's.

    `preset` is None unless a preset was asked for.
    """

    bundle: str
    engine: str
    machine: str
    submodels: tuple[SubmodelVerification, ...]
    clip: ClipVerification
    frames: int
    height: int
    width: int
    steps: int
    preset: PresetVerification | None = None

    @property
    def passed(self) -> bool:
        """Whether everything is within its tolerance."""
        preset = self.preset is None or self.preset.passed
        return preset and self.clip.passed and all(submodel.passed for submodel in self.submodels)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file; numbers that are not finite become null."""
        submodels = [
            {name: _finite_or_none(value) for name, value in asdict(submodel).items()}
            | {"passed": submodel.passed}
            for submodel in self.submodels
        ]
        return asdict(self) | {
            "passed": self.passed,
            "submodels": submodels,
            "clip": asdict(self.clip) | {"passed": self.clip.passed},
            "preset": None if self.preset is None else asdict(self.preset) | {"passed": self.preset.passed},
        }


def verify_bundle(
    model: SonicModel, progress: Progress | None = None, speed: SpeedName | None = None
) -> Verification:
    """Run every submodel on its golden inputs, with one in memory at a time, and generate the golden clip.

    Args:
        model: the loaded bundle; its threads and memory mode are used.
        progress: shows the stages.
        speed: a preset to compare with the published sampler in addition; "exact" adds nothing.

    Raises:
        BundleError: the bundle has no golden vectors, or they cannot be read or do not fit its submodels.
        InputError: the clip needs more memory than is free.
    """
    progress = progress or NoProgress()
    bundle = model.engine.bundle
    info = verification_info(bundle)
    rows = []
    with progress.stage("submodels", len(info.submodels)) as advance:
        for name, golden in info.submodels.items():
            vectors = GoldenVectors.of(
                bundle.read(golden.file.path), str(bundle.directory / golden.file.path)
            )
            max_abs, relative_l2 = measure_submodel(model.engine, name, vectors)
            rows.append(
                SubmodelVerification(name, max_abs, relative_l2, golden.relative_l2, golden.tolerance)
            )
            advance()
    expected = expected_clip(bundle, info.clip)
    psnr, problem = None, None
    try:
        frames = generate_clip(model, info.clip, expected.noise, progress)
    except BundleError as error:  # the UNet returned values that are not finite
        problem = str(error)
    else:
        psnr = measure_clip(bundle, frames, expected.frames)
    count, height, width, _ = expected.frames.shape
    return Verification(
        bundle=bundle.manifest.name,
        engine=bundle.manifest.engine,
        machine=platform.machine(),
        submodels=tuple(rows),
        clip=ClipVerification(psnr, info.clip.psnr_db, info.clip.minimum_psnr_db, problem),
        frames=count,
        height=height,
        width=width,
        steps=info.clip.steps,
        preset=None if speed in (None, EXACT_SPEED) else verify_preset(model, speed, progress),
    )


def verify_preset(model: SonicModel, speed: SpeedName, progress: Progress) -> PresetVerification:
    """Generate the golden clip with a speed preset and with the published sampler, and compare the two.

    Args:
        model: the loaded bundle.
        speed: the preset.
        progress: shows the stages.

    Raises:
        BundleError: the bundle has no golden clip, or it cannot be read.
        InputError: the clip needs more memory than is free.
    """
    bundle = model.engine.bundle
    manifest, clip = bundle.manifest, verification_info(bundle).clip
    noise = expected_clip(bundle, clip).noise
    psnr, worst, problem = None, None, None
    try:
        published = generate_clip(model, clip, noise, progress, EXACT_SPEED)
        frames = generate_clip(model, clip, noise, progress, speed)
    except BundleError as error:  # the UNet returned values that are not finite
        problem = str(error)
    else:
        psnr = measure_clip(bundle, frames, published)
        worst = min(
            measure_clip(bundle, frame[None], expected[None])
            for frame, expected in zip(frames, published, strict=True)
        )
    return PresetVerification(
        speed,
        evaluations_per_window(denoising_steps(manifest, GenerationOptions(speed=speed))),
        evaluations_per_window(denoising_steps(manifest, GenerationOptions(speed=EXACT_SPEED))),
        psnr,
        worst,
        manifest.speeds.golden_clip_minimum_psnr_db(speed),
        problem,
    )


def expected_clip(bundle: Bundle, clip: GoldenClip) -> ExpectedClip:
    """The noise and frames of the golden clip.

    Raises:
        BundleError: they were changed, or are malformed.
    """
    path = clip.expected.path
    return ExpectedClip.of(bundle.read(path), str(bundle.directory / path))


def verification_info(bundle: Bundle) -> VerificationInfo:
    """The bundle's golden data.

    Raises:
        BundleError: it has none.
    """
    if bundle.manifest.verification is None:
        raise BundleError(
            f"{bundle.directory} holds no golden vectors to be verified with; convert the checkpoint again "
            "with this version"
        )
    return bundle.manifest.verification


def measure_submodel(engine: Engine, name: str, vectors: GoldenVectors) -> tuple[float, float]:
    """Run a submodel on its golden inputs.

    Returns:
        The largest absolute difference from PyTorch and the relative L2 difference, of the worst output;
        both infinite if an output holds a value that is not finite.

    Raises:
        BundleError: the submodel does not take these inputs, or gives other outputs.
    """
    directory = engine.bundle.directory
    with engine.open(name) as session:
        try:
            outputs = session.run(vectors.inputs)
        except NotFinite:
            return float("inf"), float("inf")
        except Exception as error:  # engines' errors share no base class
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BundleError(
                f"{directory}: '{name}' does not run on its golden inputs ({reason}); copy or convert the "
                "bundle again"
            ) from error
    worst = (0.0, 0.0)
    for output, expected in vectors.outputs.items():
        found = outputs.get(output)
        if found is None or found.shape != expected.shape:
            shape = "nothing" if found is None else f"the shape {found.shape}"
            raise BundleError(
                f"{directory}: '{name}' gives {shape} for '{output}', but its golden vectors have "
                f"{expected.shape}; convert the checkpoint again"
            )
        if not np.isfinite(found).all():
            return float("inf"), float("inf")
        difference = compare(expected.values_of(found), expected.values)
        worst = max(worst[0], difference.max_abs), max(worst[1], difference.relative_l2)
    return worst


def generate_clip(
    model: SonicModel,
    clip: GoldenClip,
    noise: np.ndarray,
    progress: Progress,
    speed: SpeedName | None = None,
) -> np.ndarray:
    """Generate the golden clip with the bundle; returns uint8 (frames, H, W, 3).

    Args:
        model: the loaded bundle.
        clip: the clip to generate.
        noise: (generated frames, 4, h, w) float32.
        progress: shows the stages.

    Raises:
        BundleError: the UNet returned values that are not finite.
        InputError: the clip needs more memory than is free.
    """
    bundle = model.engine.bundle
    options = GenerationOptions(
        min_resolution=clip.resolution_pixels,
        speed=speed,
        inference_steps=clip.steps if speed is None else None,
    )
    request = ClipRequest(
        bundle.path(clip.portrait.path),
        bundle.path(clip.speech.path),
        options.resolved(model.constants),
        noise,
        face_box=clip.face_box,
    )
    return np.asarray(model.generate_request(request, progress))


def measure_clip(bundle: Bundle, frames: np.ndarray, expected: np.ndarray) -> float:
    """The PSNR (dB) of a clip against the expected one; both are uint8 (frames, H, W, 3).

    The last frame of a video is held until its sound ends, so `frames` may be a few frames longer.

    Raises:
        BundleError: the clip is shorter, or of another size.
    """
    if len(frames) < len(expected) or frames.shape[1:] != expected.shape[1:]:
        raise BundleError(
            f"{bundle.directory}: the clip has the shape {frames.shape}, but its golden frames have "
            f"{expected.shape}; convert the checkpoint again"
        )
    difference = frames[: len(expected)].astype(np.float64) - expected
    return psnr_db(float(np.mean(difference**2)))


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


__all__ = [
    "ClipVerification",
    "PresetVerification",
    "SubmodelVerification",
    "Verification",
    "verify_bundle",
]
