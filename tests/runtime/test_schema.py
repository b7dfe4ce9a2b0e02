"""An option is defined once: the Python API, the command lines and batch lines derive from it."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass
from typing import Annotated

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import sonic
from sonic.cli.main import main
from sonic.jobs.job import JOB_OPTIONS
from sonic.model import ClipArguments
from sonic.options import GenerationOptions, RunOptions
from sonic.schema import Option, Validated, accepts, definitions

EVERY = [*definitions(ClipArguments), *definitions(RunOptions)]


@pytest.mark.parametrize("definition", EVERY, ids=lambda d: d.field)
def test_a_definition_is_whole(definition) -> None:
    assert definition.option.sentence[0].isupper() and not definition.option.sentence.endswith(".")
    assert definition.required or definition.default is not MISSING
    if definition.optional:
        assert definition.option.default, "what is used in place of None?"
    else:
        definition.check(definition.default) if not definition.required else None


def test_the_python_api_has_every_option() -> None:
    for function in (sonic.SonicModel.generate, sonic.SonicModel.stream):
        parameters = inspect.signature(function).parameters
        for definition in definitions(ClipArguments):
            default = inspect.Parameter.empty if definition.required else definition.default
            assert parameters[definition.field].default == default
        assert list(parameters)[:3] == ["self", "image", "audio"]
    for definition in definitions(RunOptions):
        assert inspect.signature(sonic.load_model).parameters[definition.field].default == definition.default
    text = sonic.SonicModel.generate.__doc__ or ""
    assert all(f"{d.field}: {d.option.sentence}" in text for d in definitions(ClipArguments))


def test_the_command_line_has_every_option() -> None:
    text = " ".join(CliRunner().invoke(main, ["generate", "--help"]).output.split())
    for definition in EVERY:
        assert f"--{definition.name.replace('_', '-')}" in text
        assert definition.option.sentence.split(";")[0][:20] in text


def test_batch_lines_have_every_option() -> None:
    assert set(JOB_OPTIONS) == {d.name for d in definitions(GenerationOptions)} | {"noise"}


def test_an_unknown_argument_is_named() -> None:
    model = sonic.SonicModel.__new__(sonic.SonicModel)
    with pytest.raises(TypeError, match="inference_stepz"):
        model.generate("a.png", "a.wav", inference_stepz=3)
    with pytest.raises(TypeError, match="audio"):
        model.generate("a.png")


@dataclass(frozen=True, kw_only=True)
class Sample(Validated):
    count: Annotated[int | None, Option("How many", unit="things", minimum=1, maximum=9, default="all")] = (
        None
    )
    ratio: Annotated[float, Option("How much", minimum=0)] = 0.5
    exact: Annotated[bool, Option("Whether")] = False


@given(st.one_of(st.none(), st.integers(), st.floats(), st.booleans(), st.text(max_size=5)))
def test_values_are_accepted_exactly_in_their_range(value: object) -> None:
    fits = value is None or (type(value) is int and 1 <= value <= 9)
    if fits:
        assert Sample(count=value).count == value
    else:
        with pytest.raises(
            sonic.InputError, match="count'? is .*, but should be a whole number from 1 to 9 things"
        ):
            Sample(count=value)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1", True, None])
def test_numbers_that_are_none(value: object) -> None:
    with pytest.raises(sonic.InputError, match="ratio'? is .*, but should be a number of at least 0"):
        Sample(ratio=value)


def test_a_function_takes_the_fields_as_arguments() -> None:
    @accepts(Sample)
    def total(sample: Sample) -> float:
        """Add up.

        Args:
            (options)
        """
        return (sample.count or 0) + sample.ratio

    assert total(count=3) == 3.5
    assert list(inspect.signature(total).parameters) == ["count", "ratio", "exact"]
    assert "count: How many (a whole number from 1 to 9 things; all by default)." in total.__doc__
    with pytest.raises(TypeError):
        total(4)
    with pytest.raises(sonic.InputError):
        total(count=10)
