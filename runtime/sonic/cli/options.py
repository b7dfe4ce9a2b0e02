"""Command-line options, derived from their definitions.

Example:

    @click.command()
    @with_options(GenerationOptions, "options", only=("duration", "inference_steps"))
    def command(options: GenerationOptions) -> None: ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import click

from sonic.cli.errors import user_errors
from sonic.execution import most_threads
from sonic.host import parse_processors, pin_to_processors, stay_on_a_node
from sonic.model import ClipArguments, SonicModel, open_model
from sonic.options import GenerationOptions, RunOptions
from sonic.schema import Definition, PathLike, definitions

Command = TypeVar("Command", bound=Callable[..., object])
PATH = click.Path(path_type=Path)


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas."""

    name = "numbers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} should be numbers separated by commas", param, ctx)


_TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING, Path: PATH, tuple: _Numbers()}


#: The options that choose a clip's denoising steps.
DENOISING_OPTIONS = ("speed", "inference_steps", "sigmas", "image_guidance", "audio_guidance")


def with_options(
    kind: type,
    parameter: str,
    *,
    only: Collection[str] | None = None,
    but: Collection[str] = (),
    defaults: Mapping[str, object] | None = None,
) -> Callable[[Command], Command]:
    """Give a command the options that a dataclass defines; it receives an object of that class.

    Args:
        kind: the dataclass; see :mod:`sonic.schema`.
        parameter: the name of the command's parameter that receives the object.
        only, but: the fields that become options (None for all), or those that do not.
        defaults: this command's defaults, where they differ from the definitions'.
    """
    defaults = defaults or {}
    chosen = [d for d in definitions(kind) if (only is None or d.field in only) and d.field not in but]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(*args: object, **values: object) -> object:
            given = {definition.field: values.pop(definition.field) for definition in chosen}
            with user_errors():
                values[parameter] = kind(**given)
            return command(*args, **values)

        for definition in sorted(reversed(chosen), key=lambda one: one.required):  # required ones first
            call = _option(definition, defaults.get(definition.field, definition.default))(call)
        return call  # type: ignore[return-value]

    return decorate


def _option(definition: Definition, default: object) -> Callable[[Command], Command]:
    """One click option. Ranges are checked by the object itself, whose errors say what would be right."""
    flag = f"--{definition.name.replace('_', '-')}"
    text = definition.option.sentence
    if definition.required:
        return click.option(flag, definition.field, required=True, type=PATH, help=f"{text}.")
    if definition.kind is bool:
        off = flag.replace("--", "--no-", 1)
        state = "on" if default else "off"
        return click.option(f"{flag}/{off}", definition.field, default=default, help=f"{text} [{state}].")
    kind = click.Choice(definition.choices) if definition.choices else _TYPES[definition.kind]
    if default is None:
        used = f" [{definition.option.default}]" if definition.option.default else ""
        return click.option(flag, definition.field, type=kind, help=f"{text}{used}.")
    return click.option(
        flag, definition.field, type=kind, default=default, show_default=True, help=f"{text}."
    )


def _pin(_context: click.Context, _parameter: click.Parameter, text: str | None) -> None:
    """Pin the process before any thread is started."""
    if text is not None:
        with user_errors():
            pin_to_processors(parse_processors(text))


def processors_option(command: Command) -> Command:
    """`--cpus`, an option of every command that runs submodels."""
    return click.option(
        "--cpus",
        callback=_pin,
        expose_value=False,
        metavar="LIST",
        help="Run only on these processors, such as 0-31 [all that the process may use].",
    )(command)


def run_options(command: Command) -> Command:
    """The options of every command that runs the UNet, as its parameter `run`."""
    return with_options(RunOptions, "run")(processors_option(command))


def threads_option(command: Command) -> Command:
    """`--threads` alone, as the parameter `run`."""
    return with_options(RunOptions, "run", only=("threads",))(processors_option(command))


def clip_options(command: Command) -> Command:
    """The inputs and options of one clip, as the parameter `clip`."""
    return with_options(ClipArguments, "clip")(command)


def resume_option(command: Command) -> Command:
    """`--no-resume` alone, as the parameter `resume`."""
    (definition,) = (one for one in definitions(ClipArguments) if one.field == "resume")
    return _option(definition, definition.default)(command)


def size_options(command: Command) -> Command:
    """The options that decide what a clip costs, as the parameter `options`."""
    return with_options(
        GenerationOptions,
        "options",
        only=("duration", "min_resolution", *DENOISING_OPTIONS),
        defaults={"duration": 10.0},
    )(command)


def load_for_command(bundle: PathLike, run: RunOptions) -> SonicModel:
    """Load a model for a command, whose process is kept on one NUMA node if its threads fit there."""
    stay_on_a_node(most_threads(run))
    return open_model(bundle, run)
