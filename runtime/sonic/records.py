"""Reading frozen dataclasses from JSON, with errors of one sentence.

    machine = read_record(Machine, text, str(path), InputError)

Fields and their types, annotations with pydantic's constraints among them, are the whole definition; a
dataclass whose unknown entries are errors says so with ``__pydantic_config__ = EXACT``.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sonic.errors import SonicError

Record = TypeVar("Record")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}  # making one takes milliseconds

#: Numbers are not read from text, and entries that no field has are errors.
EXACT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
#: As `EXACT`, but entries that no field has are left out.
TOLERANT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def read_record(
    kind: type[Record], text: str | bytes, source: str, error: type[SonicError], advice: str = ""
) -> Record:
    """Read a dataclass from the text of a JSON file.

    Args:
        kind: the dataclass.
        text: JSON.
        source: the file, which the error names.
        error: what is raised.
        advice: ends the error: what the user can do.

    Raises:
        SonicError: of the class `error`, where an entry is missing, unknown, of another type or out of range.
    """
    try:
        if kind not in _ADAPTERS:
            _ADAPTERS[kind] = TypeAdapter(kind)
        record: Record = _ADAPTERS[kind].validate_json(text)
        return record
    except ValidationError as failure:
        sentence = f"{source} cannot be read ({describe(failure)})"
        raise error(f"{sentence}; {advice}" if advice else sentence) from None


def describe(failure: ValidationError) -> str:
    """The first problem: which entry, its value, and what would be right."""
    problem = failure.errors(include_url=False)[0]
    entry = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "json_invalid":
            return f"it is not JSON: {problem['ctx']['error']}"
        case "missing":
            return f"the entry '{entry}' is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"the entry '{entry}' is unknown"
        case "greater_than" if problem["ctx"]["gt"] == 0:
            wanted = "should be above zero"
        case "dataclass_type":
            value = type(problem["input"]).__name__
            return (
                f"'{entry}' is a {value}, but should be an object"
                if entry
                else f"this is a {value}, not an object"
            )
        case "value_error":
            return f"the entry '{entry}' is malformed: {problem['ctx']['error']}"
        case _:
            wanted = problem["msg"].removeprefix("Input ")
    return f"'{entry}' is {_shown(problem['input'])}, but {wanted}"


def _shown(value: Any) -> str:
    """A value of at most some words."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
