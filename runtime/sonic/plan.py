"""How a clip will be computed, as data: its denoising steps, and the calls of every submodel.

    size = ClipSize(seconds=10.0, width=512, height=512)
    plan = plan_clip(manifest.constants, size, denoising_steps(manifest, options))
    plan.denoising.steps[3].sigma
    for stage in plan.stages:
        for calls in stage.calls:
            print(stage.name, calls.submodel, calls.sizes, calls.count)

A generation makes this plan before denoising, and executes it; `sonic plan` prints it, and estimates, memory
checks and progress are computed from the same object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sonic.bundle.constants import Constants
from sonic.bundle.manifest import Manifest
from sonic.bundle.presets import EXACT_SPEED
from sonic.diffusion.plan import DenoisingPlan, plan_denoising
from sonic.diffusion.steps import Guidance, StepSettings, preset_steps, published_steps, steps_at_levels
from sonic.media.face import detector_size
from sonic.media.portrait import output_size
from sonic.options import DEFAULT_CLIP, GenerationOptions


@dataclass(frozen=True)
class ClipSize:
    """How long and how large a clip is.

    Attributes:
        seconds: duration of the speech.
        width, height: size of the video in pixels, multiples of 64.
    """

    seconds: float
    width: int
    height: int


@dataclass(frozen=True)
class SubmodelCalls:
    """Calls of one submodel that have the same sizes.

    Attributes:
        submodel: its name.
        sizes: sizes of its dynamic axes, by name.
        count: number of calls.
        independent: how many of them may run at the same time, as none needs another's result.
    """

    submodel: str
    sizes: dict[str, int]
    count: int
    independent: int = 1


@dataclass(frozen=True)
class Stage:
    """One stage of a clip.

    Attributes:
        name: the name that progress shows.
        calls: the calls of its submodels.
        loaded_together: whether its submodels are in memory at the same time; if not, one after another.
        several_clips: whether a batch runs this stage for several clips at the same time.
    """

    name: str
    calls: tuple[SubmodelCalls, ...]
    loaded_together: bool = False
    several_clips: bool = False


@dataclass(frozen=True)
class ClipPlan:
    """Everything that will be computed for one clip.

    Attributes:
        size: the clip's size.
        generated_frames: number of frames that are denoised.
        shown_frames: number of frames in the video.
        denoising: every step with its windows, guidance branches and calls.
        stages: the calls of every submodel, in the order in which they run.
    """

    size: ClipSize
    generated_frames: int
    shown_frames: int
    denoising: DenoisingPlan
    stages: tuple[Stage, ...]

    @property
    def submodel_calls(self) -> Iterator[SubmodelCalls]:
        """The calls of all stages."""
        return (calls for stage in self.stages for calls in stage.calls)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "size": asdict(self.size),
            "generated_frames": self.generated_frames,
            "shown_frames": self.shown_frames,
            "denoising": self.denoising.to_json(),
            "stages": [asdict(stage) for stage in self.stages],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ClipPlan:
        """Read what :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError: an entry is missing or malformed.
        """
        return cls(
            ClipSize(**values["size"]),
            int(values["generated_frames"]),
            int(values["shown_frames"]),
            DenoisingPlan.from_json(values["denoising"]),
            tuple(
                Stage(**(stage | {"calls": tuple(SubmodelCalls(**calls) for calls in stage["calls"])}))
                for stage in values["stages"]
            ),
        )


def denoising_steps(
    manifest: Manifest, options: GenerationOptions = DEFAULT_CLIP
) -> tuple[StepSettings, ...]:
    """The steps that options ask for: those of a preset, of the published sampler, or at `sigmas`."""
    sampler = manifest.constants.sampler
    options = options.resolved(manifest.constants, manifest.speeds.default)
    guidance = Guidance.of(sampler, options.image_guidance, options.audio_guidance)
    if options.sigmas is not None:
        return steps_at_levels(options.sigmas, sampler, guidance)
    if options.speed is None or options.speed == EXACT_SPEED:
        return published_steps(options.inference_steps or sampler.steps, sampler, guidance)
    return preset_steps(manifest.speeds.presets[options.speed], sampler, guidance)


def plan_clip(
    constants: Constants,
    size: ClipSize,
    steps: Sequence[StepSettings],
    generated_frames: int | None = None,
) -> ClipPlan:
    """Plan a clip.

    Args:
        constants: the bundle's.
        size: the clip's.
        steps: the denoising steps; see :func:`denoising_steps`.
        generated_frames: number of frames to denoise, if known; by default it follows from the duration.
    """
    video = constants.video
    if generated_frames is None:
        generated_frames = max(1, int(size.seconds * video.generated_frame_rate_hz))
    shown_frames = max(1, round(size.seconds * video.frame_rate_hz))
    denoising = plan_denoising(generated_frames, steps, constants.sampler)
    stages = (
        Stage("portrait", _portrait_calls(constants, size)),
        Stage("speech", _speech_calls(constants, size, generated_frames), loaded_together=True),
        Stage("denoising", _denoising_calls(constants, size, denoising), several_clips=True),
        Stage(
            "frames",
            _decoding_calls(constants, size, generated_frames),
            loaded_together=True,
            several_clips=True,
        ),
    )
    return ClipPlan(size, generated_frames, shown_frames, denoising, stages)


def plan_square_clip(manifest: Manifest, options: GenerationOptions) -> ClipPlan:
    """Plan a clip of a square portrait, when nothing but its options is known.

    Args:
        manifest: the bundle's.
        options: the clip's; the duration has to be given, the others may be None for the bundle's defaults.

    Raises:
        InputError: the resolution rounds to zero.
    """
    constants = manifest.constants
    options = options.resolved(constants, manifest.speeds.default)
    side, seconds = options.min_resolution, options.duration
    assert side is not None and seconds is not None
    width, height = output_size(side, side, side, constants.portrait.size_multiple_pixels)
    return plan_clip(constants, ClipSize(seconds, width, height), denoising_steps(manifest, options))


def _portrait_calls(constants: Constants, size: ClipSize) -> tuple[SubmodelCalls, ...]:
    detector_height, detector_width = detector_size(size.height, size.width, constants.face)
    return (
        SubmodelCalls("face_detector", {"height": detector_height, "width": detector_width}, 1),
        SubmodelCalls("image_encoder", {}, 1),
        SubmodelCalls("vae_encoder", _picture_sizes(size), 1),
    )


def _speech_calls(constants: Constants, size: ClipSize, frames: int) -> tuple[SubmodelCalls, ...]:
    audio = constants.audio
    windows = int(np.ceil(size.seconds * audio.sample_rate_hz / audio.window_samples))
    return (
        SubmodelCalls("audio_encoder", {}, windows),
        # These run on pieces of the clip, whose work adds up to that of one call.
        SubmodelCalls("audio2token", {"frames": frames}, 1),
        SubmodelCalls("audio2bucket", {"frames": frames}, 1),
    )


def _denoising_calls(
    constants: Constants, size: ClipSize, denoising: DenoisingPlan
) -> tuple[SubmodelCalls, ...]:
    height, width = _latent_size(constants, size)
    (frames,) = {step.windows.length for step in denoising.steps}
    return (
        SubmodelCalls(
            "unet",
            {"batch": 1, "frames": frames, "height": height, "width": width},
            denoising.call_count,
            max(step.call_count for step in denoising.steps),
        ),
    )


def _decoding_calls(constants: Constants, size: ClipSize, frames: int) -> tuple[SubmodelCalls, ...]:
    video = constants.video
    height, width = _latent_size(constants, size)
    whole, rest = divmod(frames, video.decode_chunk_frames)
    calls = [
        SubmodelCalls("vae_decoder", {"count": count, "height": height, "width": width}, chunks, chunks)
        for count, chunks in ((video.decode_chunk_frames, whole), (rest, 1))
        if count and chunks
    ]
    if video.interpolation_factor == 2 and frames > 1:
        calls.append(SubmodelCalls("frame_interpolator", _picture_sizes(size), frames - 1, frames - 1))
    return tuple(calls)


def _picture_sizes(size: ClipSize) -> dict[str, int]:
    return {"count": 1, "height": size.height, "width": size.width}


def _latent_size(constants: Constants, size: ClipSize) -> tuple[int, int]:
    stride = constants.video.latent_stride_pixels
    return size.height // stride, size.width // stride
