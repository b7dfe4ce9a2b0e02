"""Options that are defined once, as annotated fields of a frozen dataclass.

    @dataclass(frozen=True, kw_only=True)
    class GenerationOptions(Validated):
        inference_steps: Annotated[
            int | None, Option("Denoising steps", minimum=1, maximum=1000, name="steps")
        ] = None

    GenerationOptions(inference_steps=0)   # InputError: steps is 0, but should be a whole number ...

Everything else is derived from such a field: the arguments of the Python API (:func:`accepts`), the options
of the command lines (:mod:`sonic.cli.options`), the keys of batch lines (:mod:`sonic.jobs.job`), and, through
`json_schema` of a definition's `adapter`, the schema of other interfaces.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import (
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import GroupedMetadata
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sonic.errors import InputError, shown

PathLike = str | os.PathLike[str]

_Parameters = ParamSpec("_Parameters")
_Arguments = TypeVar("_Arguments")
_Owner = TypeVar("_Owner")
_Result = TypeVar("_Result")
_Base = TypeVar("_Base")
# Strings are not converted to numbers, nor numbers to flags; infinities and NaN are rejected.
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Option(GroupedMetadata):
    """What a field's annotation states in addition to its type.

    Attributes:
        sentence: what the option does, for users.
        unit: the number's unit, as it ends a sentence: "pixels of the short side".
        minimum, maximum: the range, bounds included.
        default: describes the value that is used where the field's default is None.
        name: the option's name on command lines and in files, if not the field's own (published) name.
        bundle_default: gives the value that replaces None, from the bundle's constants.
        wanted: what a value should be, where its type and range do not say it.
    """

    sentence: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    default: str = ""
    name: str = ""
    bundle_default: Callable[[Any], Any] | None = None
    wanted: str = ""

    def __iter__(self) -> Iterator[Any]:
        """The constraints in pydantic's terms."""
        yield Field(
            ge=self.minimum,
            le=self.maximum,
            description=self.sentence,
            json_schema_extra={"unit": self.unit} if self.unit else None,
        )


@dataclass(frozen=True)
class Definition:
    """One option, read from its field.

    Attributes:
        field: the name of the argument in the Python API.
        name: the option's name on command lines and in files.
        kind: the type of a value: int, float, bool, str, Path, a `Literal`, or `tuple` for several numbers.
        optional: whether None is allowed.
        default: the field's default; `dataclasses.MISSING` if the option is required.
        option: its sentence, unit and range.
        adapter: pydantic's adapter for the whole annotation.
    """

    field: str
    name: str
    kind: Any
    optional: bool
    default: Any
    option: Option
    adapter: TypeAdapter[Any]

    @property
    def required(self) -> bool:
        """Whether the option has to be given."""
        return self.default is MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a `Literal`; empty for other types."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def wanted(self) -> str:
        """What a value should be: "a whole number from 1 to 1000 denoising steps"."""
        if self.option.wanted:
            return self.option.wanted
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        text = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "text",
            Path: "the path of a file",
        }[self.kind]
        low, high = self.option.minimum, self.option.maximum
        if low is not None and high is not None:
            text += f" from {low:g} to {_bound(high)}"
        elif low is not None:
            text += f" of at least {low:g}"
        return f"{text} {self.option.unit}".rstrip()

    def check(self, value: Any) -> None:
        """Check a value against the definition.

        Raises:
            InputError: the value is of another type, or out of range.
        """
        try:
            self.adapter.validate_python(value)
        except ValidationError as error:
            kind = error.errors(include_url=False)[0]["type"]
            out_of_range = kind in (
                "greater_than_equal", "less_than_equal", "finite_number", "literal_error", "value_error"
            )  # fmt: skip
            name = self.name if out_of_range else f"'{self.name}'"
            raise InputError(f"{name} is {shown(value)}, but should be {self.wanted}") from None


class Validated:
    """Base of frozen dataclasses whose annotated fields are checked at construction.

    Raises:
        InputError: a value is of another type than its field, or out of range.
    """

    def __post_init__(self) -> None:
        for definition in definitions(type(self)):
            definition.check(getattr(self, definition.field))


_DEFINITIONS: dict[type, tuple[Definition, ...]] = {}


def definitions(options: type) -> tuple[Definition, ...]:
    """The options of a dataclass, in the order of its fields; fields without an `Option` are left out."""
    if options not in _DEFINITIONS:
        _DEFINITIONS[options] = tuple(_read_definitions(options))
    return _DEFINITIONS[options]


def _read_definitions(options: type) -> Iterator[Definition]:
    hints = get_type_hints(options, include_extras=True)
    for item in fields(options):
        hint = hints[item.name]
        metadata = getattr(hint, "__metadata__", ())
        option = next((entry for entry in metadata if isinstance(entry, Option)), None)
        if option is not None:
            kind, optional = _type_without_none(hint.__origin__)
            default = item.default if item.default_factory is MISSING else item.default_factory()
            yield Definition(
                item.name, option.name or item.name, kind, optional, default, option, _adapter(hint)
            )


def narrowed(arguments: _Base, kind: type[_Base]) -> _Base:
    """Convert `arguments` to `kind`, a base of its class, with the values of the shared fields."""
    return kind(**{item.name: getattr(arguments, item.name) for item in fields(kind)})  # type: ignore[arg-type]


def accepts(
    arguments: Callable[_Parameters, _Arguments],
) -> Callable[[Callable[[_Arguments], _Result]], Callable[_Parameters, _Result]]:
    """Decorate a function of one arguments object so that it takes that object's fields as arguments.

    Type checkers, `help` and the documentation see these arguments. The line "(options)" in the docstring is
    replaced by the sentences of those that are options.
    """

    def decorate(function: Callable[[_Arguments], _Result]) -> Callable[_Parameters, _Result]:
        signature = inspect.signature(arguments)

        @functools.wraps(function)
        def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            signature.bind(*args, **kwargs)  # names the function in its TypeError, not the class
            return function(arguments(*args, **kwargs))

        _publish(call, function, signature, arguments)
        return call

    return decorate


def method_accepts(
    arguments: Callable[_Parameters, _Arguments],
) -> Callable[[Callable[[_Owner, _Arguments], _Result]], Callable[Concatenate[_Owner, _Parameters], _Result]]:
    """As :func:`accepts`, for methods."""

    def decorate(
        method: Callable[[_Owner, _Arguments], _Result],
    ) -> Callable[Concatenate[_Owner, _Parameters], _Result]:
        signature = inspect.signature(arguments)

        @functools.wraps(method)
        def call(self: _Owner, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            signature.bind(*args, **kwargs)
            return method(self, arguments(*args, **kwargs))

        owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        _publish(
            call, method, signature.replace(parameters=[owner, *signature.parameters.values()]), arguments
        )
        return call

    return decorate


def _publish(
    call: Callable[..., Any],
    function: Callable[..., Any],
    signature: inspect.Signature,
    arguments: Callable[..., Any],
) -> None:
    """Put the signature and the options' sentences where Python looks for them."""
    returns = inspect.signature(function).return_annotation
    call.__signature__ = signature.replace(return_annotation=returns)  # type: ignore[attr-defined]
    text = inspect.getdoc(function) or ""
    if isinstance(arguments, type) and _OPTIONS_HERE in text:
        lines = [f"    {_described(definition)}" for definition in definitions(arguments)]
        text = text.replace(f"    {_OPTIONS_HERE}", "\n".join(lines))
    call.__doc__ = text


#: The docstring line that is replaced by the options' sentences.
_OPTIONS_HERE = "(options)"


def _described(definition: Definition) -> str:
    """One entry of a docstring's "Args"."""
    option = definition.option
    notes = [] if definition.kind is Path or definition.kind is bool else [definition.wanted]
    if option.default:
        notes.append(f"{option.default} by default")
    elif not definition.required and definition.default is not None:
        notes.append(f"{definition.default} by default")
    return f"{definition.field}: {option.sentence}" + (f" ({'; '.join(notes)})." if notes else ".")


def _type_without_none(hint: Any) -> tuple[Any, bool]:
    """A type without None, and whether None was part of it; `str` and something else is a path."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    rest = [member for member in members if member is not type(None)]
    if str in rest and len(rest) > 1:
        return Path, len(rest) < len(members)
    (kind,) = rest
    return tuple if get_origin(kind) is tuple else kind, len(rest) < len(members)


def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=_STRICT)


def _bound(value: float) -> str:
    """A bound without an exponent."""
    return str(value) if isinstance(value, int) else f"{value:g}"


__all__ = [
    "Definition",
    "Option",
    "PathLike",
    "Validated",
    "accepts",
    "definitions",
    "method_accepts",
    "narrowed",
]
