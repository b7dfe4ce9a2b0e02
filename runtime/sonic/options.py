"""What a user may ask of one generation, and how its submodels run: each option is defined here, once."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from sonic.bundle.constants import GUIDANCE_BRANCHES, Constants
from sonic.host import cpu_count
from sonic.schema import Option, Validated, definitions


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(Validated):
    """The options of one clip; None means the bundle's value, or the input's own.

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
    inference_steps: Annotated[
        int | None,
        Option(
            "Denoising steps",
            unit="denoising steps",
            minimum=1,
            maximum=1000,
            default="the bundle's",
            name="steps",
            bundle_default=lambda constants: constants.sampler.steps,
        ),
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

    def resolved(self, constants: Constants) -> GenerationOptions:
        """The same options with the bundle's values where none was given."""
        return replace(
            self,
            **{
                definition.field: definition.option.bundle_default(constants)
                for definition in definitions(GenerationOptions)
                if definition.option.bundle_default is not None and getattr(self, definition.field) is None
            },
        )


DEFAULT_CLIP = GenerationOptions()  # the whole recording, with the bundle's values

MemoryMode = Literal["low", "balanced", "fast"]
MEMORY_MODES: tuple[MemoryMode, ...] = get_args(MemoryMode)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Validated):
    """How submodels run; none of it changes what is asked for.

    With `memory` "low" the guidance branches run one after another, with "balanced" as one batch; "fast"
    runs branches and windows apart as "low" does, and as many of them at the same time as the cores are
    enough for, each with `threads` threads, or one where that is None.

    Raises:
        InputError: a value is of another type, or out of its range.
    """

    memory: Annotated[
        MemoryMode,
        Option("Guidance branches one by one, together, or all calls at once"),
    ] = "balanced"
    threads: Annotated[
        int | None,
        Option(
            "Threads for one operator", unit="threads", minimum=1, maximum=1024, default="the engine chooses"
        ),
    ] = None
    bfloat16: Annotated[
        bool,
        Option("Multiply float32 matrices in bfloat16, where aarch64 processors can: faster, less exact"),
    ] = False

    @property
    def branches_at_once(self) -> int:
        """Guidance branches in one call of the UNet."""
        return GUIDANCE_BRANCHES if self.memory == "balanced" else 1

    @property
    def calls_at_once(self) -> int:
        """Calls of the UNet at the same time."""
        return max(1, cpu_count() // (self.threads or 1)) if self.memory == "fast" else 1

    @property
    def threads_of_a_call(self) -> int | None:
        """Threads of one call; None where the engine is to choose.

        Engines know the processor only: ONNX Runtime pins a thread to every core, be it the process's or
        not. And with more threads than a control group's quota, all are stopped together for a part of
        every period.
        """
        if self.threads is not None:
            return self.threads
        if self.memory == "fast":
            return 1
        cores = cpu_count()
        return cores if cores < (os.cpu_count() or 1) else None

    @property
    def threads_at_once(self) -> int:
        """Threads of all calls at the same time."""
        return self.calls_at_once * (self.threads_of_a_call or cpu_count())


BALANCED = RunOptions()
