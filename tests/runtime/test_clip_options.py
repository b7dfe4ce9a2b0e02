"""The options that choose a clip's denoising: which takes precedence, and what may be given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.bundle.constants import Constants
from sonic.bundle.presets import SPEED_NAMES, SpeedName
from sonic.errors import InputError
from sonic.options import GenerationOptions

CONSTANTS = Constants()
LEVELS = "should be noise levels above zero that decrease, such as 700,12,4,1.4,0.45,0.1"


@pytest.mark.parametrize("default", SPEED_NAMES)
@pytest.mark.parametrize(
    ("given_options", "speed", "steps"),
    [
        ({}, None, None),  # the default's
        ({"speed": "exact"}, "exact", 25),
        ({"speed": "fast"}, "fast", None),
        ({"inference_steps": 7}, "exact", 7),
        ({"inference_steps": 7, "speed": "fast"}, "exact", 7),
        ({"sigmas": (3.0, 1.0)}, "exact", None),
        ({"sigmas": (3.0, 1.0), "speed": "fast"}, "exact", None),
    ],
)
def test_steps_and_levels_come_before_a_preset(
    default: SpeedName, given_options: dict[str, object], speed: str | None, steps: int | None
) -> None:
    resolved = GenerationOptions(**given_options).resolved(CONSTANTS, default)
    if not given_options:
        speed, steps = default, 25 if default == "exact" else None
    assert (resolved.speed, resolved.inference_steps) == (speed, steps)
    assert resolved.sigmas == given_options.get("sigmas")
    # What is resolved stays, whatever the default of the bundle that it is resolved for again.
    for again in SPEED_NAMES:
        assert resolved.resolved(CONSTANTS, again) == resolved


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9, unique=True))
def test_levels_that_decrease_are_taken(levels: list[float]) -> None:
    falling = sorted(levels, reverse=True)
    assert GenerationOptions(sigmas=tuple(falling)).sigmas == tuple(falling)
    assert GenerationOptions(sigmas=falling) == GenerationOptions(sigmas=tuple(falling))  # a list will do
    if len(levels) > 1:
        with pytest.raises(InputError, match=LEVELS):
            GenerationOptions(sigmas=tuple(reversed(falling)))


@pytest.mark.parametrize(
    "levels",
    [
        (),
        (3.0, 4.0),
        (3.0, 3.0),
        (3.0, 0.0),
        (-1.0,),
        (float("nan"),),
        (float("inf"), 1.0),
        3.0,
        "3,1",
        ("3",),
    ],
    ids=str,
)
def test_levels_that_are_none(levels: object) -> None:
    with pytest.raises(InputError, match=f"sigmas'? is .*, but {LEVELS}$"):
        GenerationOptions(sigmas=levels)  # type: ignore[arg-type]


@pytest.mark.parametrize("speed", ["quick", "", "Fast", 1, True])
def test_speeds_that_are_none(speed: object) -> None:
    with pytest.raises(InputError, match="speed is .*, but should be one of exact, balanced, fast, fastest$"):
        GenerationOptions(speed=speed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["image_guidance", "audio_guidance"])
@pytest.mark.parametrize("value", [-0.1, 100.5, float("nan"), "2", True])
def test_scales_that_are_none(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name}'? is .*, but should be a number from 0 to 100$"):
        GenerationOptions(**{name: value})
    assert getattr(GenerationOptions(**{name: 0.0}), name) == 0
