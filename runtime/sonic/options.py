"""The options of a clip, and of how submodels run: each option is defined here, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator

from sonic.bundle.constants import Constants
from sonic.bundle.presets import EXACT_SPEED, SpeedName, decrease
from sonic.schema import Option, Validated, definitions
from sonic.watermark.payload import LARGEST, hour_of


def _decreasing(sigmas: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if sigmas is not None and not (decrease(sigmas) and sigmas[-1] > 0):
        raise ValueError("the noise levels should decrease")
    return sigmas


def _hour(time: str | None) -> str | None:
    if time is not None:
        hour_of(time)
    return time


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(Validated):
    """The options of one clip; None means the bundle's default, or that of the input.

    `sigmas` may be given as a list too; it becomes a tuple.

    Raises:
        InputError: a value is of another type, or out of its range.
    """

    duration: Annotated[
        float | None,
        Option("Seconds of the recording to use", unit="seconds", minimum=0.1, default="all"),
    ] = None
    min_resolution: Annotated[
        int | None,
        Option(
            "Short side of the video in pixels; each side becomes a multiple of 64",
            unit="pixels of the short side",
            minimum=64,
            maximum=4096,
            default="the bundle's",
            name="resolution",
            bundle_default=lambda constants: constants.portrait.default_resolution_pixels,
        ),
    ] = None
    speed: Annotated[
        SpeedName | None,
        Option(
            "Which of the bundle's presets to denoise with; 'exact' is the published sampler",
            default="the bundle's",
        ),
    ] = None
    inference_steps: Annotated[
        int | None,
        Option(
            "Denoising steps of the published sampler, in place of a preset",
            unit="denoising steps",
            minimum=1,
            maximum=1000,
            default="as the speed says",
            name="steps",
        ),
    ] = None
    sigmas: Annotated[
        tuple[float, ...] | None,
        AfterValidator(_decreasing),
        Option(
            "Noise levels to denoise at, in place of a preset or steps",
            wanted="noise levels above zero that decrease, such as 700,12,4,1.4,0.45,0.1",
            default="as the speed says",
        ),
    ] = None
    image_guidance: Annotated[
        float | None,
        Option("Guidance scale of the image", minimum=0, maximum=100, default="the bundle's"),
    ] = None
    audio_guidance: Annotated[
        float | None,
        Option("Guidance scale of the audio", minimum=0, maximum=100, default="the bundle's"),
    ] = None
    seed: Annotated[
        int | None,
        Option(
            "Seed of the initial noise; the same seed gives the same bytes",
            minimum=0,
            maximum=2**63 - 1,
            default="the bundle's",
            bundle_default=lambda constants: constants.sampler.seed,
        ),
    ] = None
    dynamic_scale: Annotated[
        float,
        Option("Multiplies both motion buckets", unit="times the motion buckets", minimum=0, maximum=10),
    ] = 1.0
    motion_scale: Annotated[
        float,
        Option(
            "Multiplies the expression bucket on top",
            unit="times the expression bucket",
            minimum=0,
            maximum=10,
        ),
    ] = 1.0
    expand_ratio: Annotated[
        float | None,
        Option(
            "Crop to the face box, expanded by this many box sizes on each side and made square",
            unit="face sizes added on each side",
            minimum=0,
            maximum=10,
            default="no crop",
        ),
    ] = None
    lip_sync_correction: Annotated[
        bool,
        Option("Shift the sound by up to two frames to fit the mouth"),
    ] = False
    smooth_motion: Annotated[
        bool,
        Option("Filter out jitter over time"),
    ] = False
    watermark: Annotated[
        bool,
        Option("Mark the video invisibly with the bundle, the time and the job"),
    ] = True
    watermark_time: Annotated[
        str | None,
        AfterValidator(_hour),
        Option(
            "Time in the watermark, to the hour (UTC)",
            wanted="'now' or a date of 2020 to 2138, such as 2026-11-27 or 2026-11-27T20:00Z",
            default="none: the same options give the same bytes",
        ),
    ] = None
    watermark_job: Annotated[
        int | None,
        Option(
            "Job number in the watermark",
            minimum=0,
            maximum=LARGEST,
            default="from a digest of inputs and options",
        ),
    ] = None

    def __post_init__(self) -> None:
        if isinstance(self.sigmas, list):
            object.__setattr__(self, "sigmas", tuple(self.sigmas))
        super().__post_init__()

    def resolved(self, constants: Constants, default_speed: SpeedName = EXACT_SPEED) -> GenerationOptions:
        """The same options, with the bundle's defaults for those that are None.

        Explicit `sigmas` or `inference_steps` take the place of a preset: `speed` is then "exact". With a
        preset, both stay None.

        Args:
            constants: the bundle's.
            default_speed: the bundle's default preset.
        """
        values = {
            definition.field: definition.option.bundle_default(constants)
            for definition in definitions(GenerationOptions)
            if definition.option.bundle_default is not None and getattr(self, definition.field) is None
        }
        steps, speed = self.inference_steps, self.speed or default_speed
        if steps is not None or self.sigmas is not None:
            speed = EXACT_SPEED
        if steps is None and self.sigmas is None and speed == EXACT_SPEED:
            steps = constants.sampler.steps
        return replace(self, **values, speed=speed, inference_steps=steps)


DEFAULT_CLIP = GenerationOptions()  # the whole recording, with the bundle's defaults

MemoryMode = Literal["auto", "low", "balanced", "fast"]
MEMORY_MODES: tuple[MemoryMode, ...] = get_args(MemoryMode)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Validated):
    """How submodels run; none of these options changes what is generated.

    The calls are the same in every memory mode; the mode says how many of them run at the same time. With
    "auto", the clip, the cores and the free memory decide (:mod:`sonic.execution`); with "low", one;
    with "balanced", as many as a window has guidance branches; with "fast", as many as there are cores for,
    each with `threads` threads (one if that is None).

    Raises:
        InputError: a value is of another type, or out of its range.
    """

    memory: Annotated[
        MemoryMode,
        Option("Calls at the same time: as fits the clip and the machine, 1, up to 3, or as many as cores"),
    ] = "auto"
    threads: Annotated[
        int | None,
        Option("Threads of a call", unit="threads", minimum=1, maximum=1024, default="the cores, shared"),
    ] = None
    bfloat16: Annotated[
        bool,
        Option("Multiply float32 matrices in bfloat16 on aarch64 processors that can: faster, less accurate"),
    ] = False


AUTOMATIC = RunOptions()
