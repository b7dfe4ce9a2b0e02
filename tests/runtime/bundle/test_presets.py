"""Speed presets as data: what a manifest may say, what it may not, and manifests that say nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import write_values

from sonic.bundle.manifest import Manifest
from sonic.bundle.presets import (
    ALL_BRANCHES,
    BRANCH_SETS,
    EXACT_SPEED,
    SPEED_NAMES,
    UNTUNED,
    SpeedPreset,
    SpeedPresets,
    StepRule,
)
from sonic.bundle.store import PACKAGED_BUNDLES, open_bundle
from sonic.errors import BundleError

MANIFEST = json.loads((PACKAGED_BUNDLES / "sonic-tiny/manifest.json").read_text())


def read(speeds: Any) -> Manifest:
    """The packaged bundle's manifest with other presets."""
    return Manifest.from_json(MANIFEST | {"speeds": speeds}, "manifest.json")


multiples = st.floats(-2, 2)
rules = st.tuples(st.sampled_from(BRANCH_SETS), multiples, multiples)


@st.composite
def speed_presets(draw: st.DrawFn) -> SpeedPreset:
    levels = draw(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9, unique=True))
    steps = [StepRule(level, *draw(rules)) for level in sorted(levels, reverse=True)]
    return SpeedPreset(tuple(steps), draw(st.floats(0.1, 4)))


all_presets = st.builds(
    SpeedPresets,
    st.sampled_from(SPEED_NAMES),
    st.fixed_dictionaries({name: speed_presets() for name in SPEED_NAMES[1:]}),
    st.sampled_from([{}, {"ssim": 0.995, "golden_clip_minimum_psnr_db": {"fast": 30.0, "balanced": 40}}]),
)


@given(all_presets)
def test_presets_survive_a_manifest(speeds: SpeedPresets) -> None:
    manifest = replace(Manifest.from_json(MANIFEST, "manifest.json"), speeds=speeds)
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())), "again")
    assert again == manifest and again.speeds == speeds
    assert again.speeds.tuned == bool(speeds.tuning)
    for preset in again.speeds.presets.values():
        assert preset.evaluations == sum(len(step.branches) for step in preset.steps)
        assert preset.reuses == any(step.image_reuse or step.audio_reuse for step in preset.steps)


def test_a_manifest_without_presets_has_the_untuned_ones() -> None:
    old = {key: value for key, value in MANIFEST.items() if key != "speeds"}
    manifest = Manifest.from_json(old, "manifest.json")
    assert manifest.speeds == UNTUNED and not UNTUNED.tuned
    assert UNTUNED.default == EXACT_SPEED and set(UNTUNED.presets) == set(SPEED_NAMES) - {EXACT_SPEED}
    counts = [UNTUNED.presets[name].evaluations for name in SPEED_NAMES[1:]]
    assert counts == sorted(counts, reverse=True) and counts[0] < 75  # each is faster than the one before
    assert manifest.to_json()["speeds"] == UNTUNED.to_json()


def change(edit: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    speeds: dict[str, Any] = json.loads(json.dumps(UNTUNED.to_json()))
    edit(speeds)
    return speeds


def step(number: int, **values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda speeds: speeds["presets"]["fast"]["steps"][number].update(values)


WRONG = {
    "levels that rise": (step(2, sigma=13.0), "noise levels of a preset's steps should decrease"),
    "levels that stay": (step(2, sigma=12.0), "noise levels of a preset's steps should decrease"),
    "no steps": (lambda v: v["presets"]["fast"].update(steps=[]), "and be at least one"),
    "a level of zero": (step(5, sigma=0), "fast.steps.5.sigma' is 0, but should be above zero"),
    "a level below zero": (step(5, sigma=-1.0), "speeds.presets.fast.steps.5.sigma"),
    "a level that is text": (step(1, sigma="12"), "speeds.presets.fast.steps.1.sigma' is '12'"),
    "an unknown branch": (step(1, branches=[1, 3]), r"the branches \[1, 3\] should be one of"),
    "no branch": (step(1, branches=[]), r"the branches \[\] should be one of"),
    "not the last branch": (step(1, branches=[0, 1]), r"the branches \[0, 1\] should be one of"),
    "branches in another order": (step(1, branches=[2, 1]), r"the branches \[2, 1\] should be one of"),
    "a multiple that is none": (step(1, audio_reuse=None), "speeds.presets.fast.steps.1.audio_reuse"),
    "a factor of zero": (
        lambda v: v["presets"]["fast"].update(audio_guidance_factor=0),
        "audio_guidance_factor' is 0, but should be above zero",
    ),
    "a preset that is missing": (lambda v: v["presets"].pop("fast"), "should hold balanced, fast, fastest"),
    "exact as a preset": (
        lambda v: v["presets"].update(exact=v["presets"]["fast"]), "should hold balanced, fast, fastest"
    ),
    "an unknown preset": (
        lambda v: v["presets"].update(quick=v["presets"]["fast"]), "speeds.presets.quick"
    ),
    "an unknown default": (lambda v: v.update(default="quick"), "'speeds.default' is 'quick'"),
    "no default": (lambda v: v.pop("default"), "the entry 'speeds.default' is missing"),
    "no presets": (lambda v: v.pop("presets"), "the entry 'speeds.presets' is missing"),
    "a bound that is text": (
        lambda v: v.update(tuning={"golden_clip_minimum_psnr_db": {"fast": "high"}}),
        "'golden_clip_minimum_psnr_db' should hold numbers",
    ),
    "bounds that are a list": (
        lambda v: v.update(tuning={"golden_clip_minimum_psnr_db": [1.0]}),
        "'golden_clip_minimum_psnr_db' should hold numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_a_manifest_may_not_say(case: str) -> None:
    edit, expected = WRONG[case]
    assert read(change(lambda speeds: None)).speeds == UNTUNED  # without the edit it may
    with pytest.raises(BundleError, match=expected) as caught:
        read(change(edit))
    message = str(caught.value)
    assert message.startswith("manifest.json") and "\n" not in message
    assert message.endswith("convert the checkpoint again")


@pytest.mark.parametrize("speeds", [None, [], "fast", 3])
def test_presets_that_are_no_object(speeds: Any) -> None:
    with pytest.raises(BundleError, match="speeds"):
        read(speeds)


def test_entries_of_a_later_version_are_ignored() -> None:
    later = change(lambda v: (v.update(colour="red"), step(0, order=2)(v)))
    assert read(later).speeds == UNTUNED


def test_bounds_of_the_tuning() -> None:
    tuning = {"golden_clip_minimum_psnr_db": {"fast": 30}}
    speeds = replace(UNTUNED, tuning=tuning)
    assert speeds.golden_clip_minimum_psnr_db("fast") == 30.0
    assert speeds.golden_clip_minimum_psnr_db("balanced") is None
    assert UNTUNED.golden_clip_minimum_psnr_db("fast") is None


@given(
    st.lists(st.floats(0.01, 700), min_size=1, max_size=9, unique=True), st.floats(0, 700), st.floats(0, 700)
)
def test_full_guidance_in_a_range_of_noise(levels: list[float], low: float, high: float) -> None:
    levels = sorted(levels, reverse=True)
    preset = SpeedPreset.at_levels(levels, low, high)
    assert [one.sigma for one in preset.steps] == levels and not preset.reuses
    for one in preset.steps:
        assert one.branches == (ALL_BRANCHES if low <= one.sigma <= high else (2,))


def test_a_damaged_bundle_is_refused_when_it_is_opened(small, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(small.bundle, tmp_path / "bundle"))
    values = json.loads((bundle / "manifest.json").read_text())
    values["speeds"]["presets"]["fast"]["steps"].reverse()
    write_values(bundle, values)
    with pytest.raises(BundleError, match=r"bundle/manifest.json cannot be read .*should decrease"):
        open_bundle(bundle)
