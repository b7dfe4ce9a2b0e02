"""Options that several commands share; each group reaches a command as one object."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from sonic.bundle.presets import EXACT_SPEED
from sonic.cli.options import PATH, with_options
from sonic.options import GenerationOptions
from sonic_calibration.ranges.statistics import METHODS
from sonic_calibration.recording.examples import BUILT_IN, Example, read_examples
from sonic_calibration.recording.recordings import RecordingOptions
from sonic_convert.quantization.profiles import PROFILES
from sonic_convert.quantization.qdq import ISAS, QdqOptions

if TYPE_CHECKING:  # it imports PyTorch
    from sonic_convert.quantization.pipeline import ReducedPrecision

Command = TypeVar("Command", bound=Callable[..., None])

VARIANT = click.option(
    "--variant",
    type=click.Choice(["auto", "fp16", "fp32"]),
    default="auto",
    show_default=True,
    help="Which weights of the VAE and the image encoder to read.",
)
PRECISION_HELP = "fp32, fp16, fp16-native, int8, int8-max, or a .toml file of precisions by layer."


@dataclass(frozen=True)
class ClipArguments:
    """Which clips are generated."""

    examples: Path
    clip: GenerationOptions

    def read_examples(self) -> list[Example]:
        """The portraits and recordings."""
        return read_examples(self.examples)


@dataclass(frozen=True)
class RecordingArguments(ClipArguments):
    """Which clips are generated to calibrate, and how much of them is recorded."""

    calls: int
    gigabytes: float

    @property
    def options(self) -> RecordingOptions:
        """How the clips are generated, and how much is recorded."""
        return RecordingOptions(self.calls, int(self.gigabytes * 1e9), self.clip)


@dataclass(frozen=True)
class QuantizationArguments:
    """How ranges become integers, and what quantization may cost."""

    isa: str
    profile: str
    method: str
    smooth: bool
    budget: str | None
    calibration: Path | None

    def reduction(self, precision: str, recording: RecordingArguments) -> ReducedPrecision:
        """All options of a smaller precision.

        Raises:
            InputError: a value cannot be used.
        """
        from sonic_convert.quantization.pipeline import ReducedPrecision
        from sonic_convert.quantization.plan import find_plan
        from sonic_convert.quantization.quantize import QuantizationOptions
        from sonic_convert.quantization.search import parse_budget

        qdq = QdqOptions(isa=self.isa, method=self.method, smooth=self.smooth)
        return ReducedPrecision(
            QuantizationOptions(find_plan(precision), qdq, self.profile),
            recording.options,
            recording.examples,
            self.calibration,
            None if self.budget is None else parse_budget(self.budget),
        )


def clip_options(command: Command) -> Command:
    """The options of `ClipArguments`, as the parameter `clips`."""
    return _grouped(command, ClipArguments, "clips", _CLIPS)


def recording_options(command: Command) -> Command:
    """The options of `RecordingArguments`, as the parameter `recording`."""
    return _grouped(command, RecordingArguments, "recording", (*_CLIPS, *_RECORDING))


def quantization_options(command: Command) -> Command:
    """The options of `QuantizationArguments`, as the parameter `quantization`."""
    return _grouped(command, QuantizationArguments, "quantization", _QUANTIZATION)


_Option = Callable[[Callable[..., None]], Callable[..., None]]

_CLIPS: tuple[_Option, ...] = (
    click.option("--examples", type=PATH, default=BUILT_IN,
                 help="Folder of portraits and speech [the built-in ones]."),
    with_options(
        GenerationOptions,
        "clip",
        only=("duration", "min_resolution", "speed", "inference_steps"),
        defaults={"speed": EXACT_SPEED},  # whatever the bundle's, so that bundles are compared alike
    ),
)  # fmt: skip
_RECORDING: tuple[_Option, ...] = (
    click.option("--calls", type=int, default=8, show_default=True,
                 help="Calls of each submodel to keep per example."),
    click.option("--gigabytes", type=float, default=2.0, show_default=True,
                 help="Disk space for the recordings."),
)  # fmt: skip
_QUANTIZATION: tuple[_Option, ...] = (
    click.option("--isa", type=click.Choice(ISAS), default="x86", show_default=True,
                 help="Signed activations for aarch64, unsigned for x86."),
    click.option("--profile", type=click.Choice(list(PROFILES)), default="onnxruntime", show_default=True,
                 help="The engine that the graphs are for."),
    click.option("--method", type=click.Choice(METHODS), default="mse", show_default=True,
                 help="How a range is chosen from the recorded values."),
    click.option("--smooth/--no-smooth", default=True, help="SmoothQuant for linear layers [on]."),
    click.option("--budget", help="psnr=35 (dB) or layers=5%: leave sensitive layers in float32."),
    click.option("--calibration", type=PATH, help="A file of 'sonic-convert calibrate'."),
)  # fmt: skip


def _grouped(command: Command, kind: type, parameter: str, options: Sequence[_Option]) -> Command:
    """Give a command options that reach it as one object of the dataclass `kind`."""
    names = [field.name for field in fields(kind)]

    @functools.wraps(command)
    def call(**values: object) -> None:
        arguments = kind(**{name: values.pop(name) for name in names})
        command(**values, **{parameter: arguments})

    decorated: Callable[..., None] = call
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[return-value]
