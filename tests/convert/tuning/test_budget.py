"""Budgets of quality: reading them, and what breaks them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.errors import InputError
from sonic_convert.tuning.budget import DEFAULT_BUDGETS, Measures, QualityBudget, parse_budgets

GOOD = Measures(
    ssim=0.999, psnr=50.0, lip=0.0, amplitude=0.01, identity=0.0, sharpness=0.0, border=0.0, mouth=1.01
)


def test_budgets_are_for_one_preset_or_for_all() -> None:
    budgets = parse_budgets(["lip=0.05,identity=none", "fast:ssim=0.9, amplitude=0.2"])
    assert budgets["fast"] == QualityBudget(ssim=0.9, lip=0.05, amplitude=0.2, identity=None)
    assert budgets["balanced"] == replace(DEFAULT_BUDGETS["balanced"], lip=0.05, identity=None)
    assert parse_budgets([]) == DEFAULT_BUDGETS
    assert parse_budgets([str(budgets["fast"])])["balanced"].ssim == 0.9


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("quick:ssim=0.9", "'quick'"),
        ("exact:ssim=0.9", "'exact'"),
        ("ssim", "'ssim'"),
        ("mouth=0.9", "'mouth=0.9'"),
        ("ssim=-1", "'ssim=-1'"),
        ("ssim=1", "below 1"),
        ("", "''"),
    ],
)
def test_errors_name_the_part(text: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        parse_budgets([text])


@pytest.mark.parametrize(
    ("name", "value"),
    [("ssim", 0.979), ("psnr", 29.0), ("lip", 0.021), ("amplitude", 0.11), ("identity", 0.31),
     ("sharpness", 0.6), ("border", 0.06)],
)  # fmt: skip
def test_each_limit_is_broken_by_its_measure(name: str, value: float) -> None:
    budget = QualityBudget(ssim=0.98, psnr=30.0, sharpness=0.5, border=0.05)
    assert budget.broken(GOOD) == []
    assert budget.broken(replace(GOOD, **{name: value})) == [name]


def test_what_was_not_measured_breaks_nothing() -> None:
    assert QualityBudget(border=0.05).broken(replace(GOOD, lip=None, border=None)) == []


@given(st.floats(0.5, 0.999), st.floats(0.0, 1.0), st.floats(0.1, 1.0))
def test_a_share_of_a_budget_is_stricter(limit: float, ssim: float, share: float) -> None:
    budget, measures = QualityBudget(ssim=limit), replace(GOOD, ssim=ssim)
    assert not budget.broken(measures) or budget.broken(measures, share)
    assert bool(budget.broken(measures, share)) == (1 - ssim > share * (1 - limit))


def test_mean_amplitude_is_that_of_the_mean_change() -> None:
    clips = [replace(GOOD, mouth=0.8, amplitude=0.2), replace(GOOD, mouth=1.1, amplitude=0.1, lip=None)]
    mean = Measures.mean(clips)
    assert mean.mouth == pytest.approx(0.95) and mean.amplitude == pytest.approx(0.05)
    assert mean.lip == 0.0
