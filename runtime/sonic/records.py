"""Reading frozen dataclasses from JSON, with one-sentence errors.

    machine = read_record(Machine, text, str(path), InputError)

Fields and their types, which may be annotated with pydantic's constraints, fully define a dataclass.
With ``__pydantic_config__ = EXACT``, unknown entries are errors; with ``TOLERANT``, they are ignored.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sonic.errors import SonicError, shown

Record = TypeVar("Record")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}  # making one takes milliseconds

#: Strings are not converted to numbers, and entries without a field are errors.
EXACT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
#: As `EXACT`, but entries without a field are ignored.
TOLERANT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def read_record(
    kind: type[Record], text: str | bytes, source: str, error: type[SonicError], advice: str = ""
) -> Record:
    """Read a dataclass from the text of a JSON file.

    Args:
        kind: the dataclass.
        text: JSON.
        source: the file's name, for the error.
        error: the class of the error.
        advice: what the user can do; it ends the message.

    Raises:
        SonicError: of the class `error`; an entry is missing, unknown, of another type or out of range.
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
    """Describe the first problem: which entry, its value, and what would be right."""
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
    return f"'{entry}' is {shown(problem['input'])}, but {wanted}"
