"""The options of a clip, of how submodels run, and of what is read: each option is defined here, once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator

from sonic.bundle.constants import Constants
from sonic.bundle.presets import EXACT_SPEED, SpeedName, decrease
from sonic.errors import InputError
from sonic.scan import WANTED, check_address
from sonic.schema import Definition, Option, Validated, definitions
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


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Validated):
    """How clips are generated, whatever they are; a jobs file cannot change these.

    Raises:
        InputError: a value is of another type, or malformed.
    """

    resume: Annotated[
        bool,
        Option("Go on where an earlier run with the same arguments was stopped"),
    ] = True
    scan: Annotated[
        str | None,
        AfterValidator(check_address),
        Option(
            "Have ClamAV's daemon scan the inputs before anything decodes them: tcp://HOST:PORT or "
            "unix:///PATH",
            wanted=WANTED,
            default="no scan",
        ),
    ] = None


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
DEFAULT_BATCH = BatchOptions()


#: Options that have a variable of the environment: this and the option's name, in capitals.
ENVIRONMENT_PREFIX = "SONIC_"


@dataclass(frozen=True, kw_only=True)
class IntakeLimits(Validated):
    """What portraits and recordings may be, and what decoding one of them may take.

    Raises:
        InputError: a value is of another type, or out of its range.
    """

    picture_megabytes: Annotated[
        int, Option("Largest file of a portrait", unit="MB", minimum=1, maximum=10_000)
    ] = 64
    picture_megapixels: Annotated[
        int, Option("Most pixels of a portrait", unit="megapixels", minimum=1, maximum=1000)
    ] = 64
    picture_scans: Annotated[
        int,
        Option(
            "Most scans of a JPEG, each of which is decoded as a whole picture",
            unit="scans",
            minimum=1,
            maximum=10_000,
        ),
    ] = 32
    sound_megabytes: Annotated[
        int, Option("Largest file of a recording", unit="MB", minimum=1, maximum=100_000)
    ] = 1000
    sound_seconds: Annotated[
        int,
        Option(
            "Longest recording, or part of it that is asked for", unit="seconds", minimum=1, maximum=10**6
        ),
    ] = 3600
    decoded_megabytes: Annotated[
        int,
        Option("Most 16-bit samples that a recording may decode to", unit="MB", minimum=1, maximum=100_000),
    ] = 700  # an hour of stereo at 48 kHz
    decode_seconds: Annotated[
        int,
        Option(
            "Processor time to decode a file; three times as much by the clock",
            unit="seconds",
            minimum=1,
            maximum=86_400,
        ),
    ] = 60
    decode_memory_megabytes: Annotated[
        int, Option("Memory to decode a file, beyond the libraries", unit="MB", minimum=50, maximum=100_000)
    ] = 800
    sandbox: Annotated[
        bool,
        Option("Decode in a confined process, where time and memory are limited, and not in this one"),
    ] = True

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> IntakeLimits:
        """The limits that variables such as ``SONIC_SOUND_SECONDS=7200`` set, and the defaults.

        Args:
            environment: the process's by default.

        Raises:
            InputError: a variable's value cannot be used.
        """
        variables = os.environ if environment is None else environment
        values = {}
        for definition in definitions(cls):
            name = ENVIRONMENT_PREFIX + definition.name.upper()
            if variables.get(name):
                values[definition.field] = _parsed(definition, name, variables[name])
        return cls(**values)


_FLAGS = {
    "1": True,
    "true": True,
    "on": True,
    "yes": True,
    "0": False,
    "false": False,
    "off": False,
    "no": False,
}


def _parsed(definition: Definition, name: str, text: str) -> Any:
    try:
        value = _FLAGS[text.strip().lower()] if definition.kind is bool else definition.kind(text)
        definition.check(value)
    except (KeyError, ValueError) as error:  # an InputError is a ValueError
        raise InputError(f"{name} is {text!r}, but should be {definition.wanted}") from error
    return value
