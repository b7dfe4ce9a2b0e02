"""Tuning: what is recorded, which plans are chosen, resuming, and the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from manifests import change_values

from sonic.bundle.presets import ALL_BRANCHES, UNTUNED, SpeedPreset, StepRule
from sonic.bundle.store import PACKAGED_BUNDLES, open_bundle
from sonic.diffusion.plan import plan_denoising
from sonic.diffusion.steps import published_steps
from sonic.errors import InputError
from sonic.model import SonicModel, load_model
from sonic.options import GenerationOptions
from sonic.progress import NoProgress
from sonic_calibration.recording.examples import BUILT_IN, Example, read_examples
from sonic_convert.cli.main import main
from sonic_convert.tuning import tune as tune_module
from sonic_convert.tuning.budget import Measures, QualityBudget, parse_budgets
from sonic_convert.tuning.choice import Candidate, PlanChoice
from sonic_convert.tuning.judging import denoised_frames
from sonic_convert.tuning.search import PredictedPlan
from sonic_convert.tuning.trajectory import Trajectory, record_trajectory
from sonic_convert.tuning.tune import CANDIDATES, Tuner, TuningOptions

SHORT = GenerationOptions(duration=0.3, min_resolution=128)
STEPS = 5  # of the published sampler, where a bundle's 25 would take too long
LOOSE = parse_budgets(["ssim=0.7,lip=none,amplitude=none,identity=none", "balanced:ssim=0.8"])
GOOD = Measures(
    ssim=0.999, psnr=50.0, lip=0.0, amplitude=0.0, identity=0.0, sharpness=0.0, border=0.0, mouth=1.0
)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return read_examples(BUILT_IN)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return _with_few_steps(tmp_path / "tiny")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SonicModel:
    return load_model(_with_few_steps(tmp_path_factory.mktemp("tuning") / "tiny"))


def _with_few_steps(target: Path) -> Path:
    shutil.copytree(PACKAGED_BUNDLES / "sonic-tiny", target)
    change_values(target, lambda values: values["constants"]["sampler"].update(steps=STEPS))
    return target


@pytest.mark.parametrize("seconds", [0.4, 2.6])
def test_trajectory_is_the_clips_own(
    tiny: SonicModel, examples: list[Example], seconds: float, tmp_path: Path
) -> None:
    """Recorded latents follow from each other by the derivatives, and end at the clip's."""
    sampler = tiny.constants.sampler
    options = GenerationOptions(duration=seconds, min_resolution=64)
    frames = denoised_frames(tiny, examples[0], options)
    plan = plan_denoising(frames, published_steps(STEPS, sampler), sampler)
    _, recorded = record_trajectory(tiny, examples[0], plan, options)
    recorded.save(tmp_path / "trajectory.npz")
    recorded = Trajectory.load(tmp_path / "trajectory.npz")
    assert recorded.latents.shape == (STEPS + 1, frames, 4, 8, 8)
    for step in range(STEPS):
        width = np.float32(recorded.sigmas[step + 1] - recorded.sigmas[step])
        following = recorded.latents[step] + width * recorded.derivatives[step]
        scale = np.abs(recorded.latents[step + 1]).max()
        np.testing.assert_allclose(following, recorded.latents[step + 1], atol=2e-5 * scale)
    tiny.generate(
        examples[0].image, examples[0].audio, duration=seconds, min_resolution=64, speed="exact",
        dump=tmp_path / "dump", progress=NoProgress(),
    )  # fmt: skip
    latents = np.load(tmp_path / "dump" / "latents.npy")
    np.testing.assert_allclose(recorded.latents[-1], latents, atol=1e-3 * np.abs(latents).max())
    assert np.abs(recorded.audio_differences).max() > 0 and np.abs(recorded.image_differences).max() > 0


def _plans(count: int) -> list[tuple[PredictedPlan, ...]]:
    return [
        (PredictedPlan(SpeedPreset(tuple(StepRule(700.0 - step) for step in range(number))), 1.0 / number),)
        for number in range(1, count + 1)
    ]


class Judge:
    """Stands for generated clips: the similarity grows with the steps."""

    def __init__(self, **changes: float) -> None:
        self.asked: list[SpeedPreset] = []
        self._changes = changes

    def __call__(self, plan: PredictedPlan) -> Candidate:
        self.asked.append(plan.preset)
        ssim = 1 - 0.1 / len(plan.preset.steps)
        mouth = self._changes.get("mouth", 1.0) * plan.preset.audio_guidance_factor**0.5
        measures = replace(GOOD, ssim=ssim, mouth=mouth, amplitude=abs(mouth - 1))
        return Candidate(plan.preset, plan.predicted_error, (measures, measures))


@pytest.mark.parametrize("wanted", range(1, 20))
def test_cheapest_plan_is_found_with_few_trials(wanted: int) -> None:
    judge = Judge()
    # Four fifths of the budget may be used up: plans of `wanted` steps just do.
    budget = QualityBudget(ssim=1 - 0.1 / wanted / 0.8 - 1e-9)
    chosen = PlanChoice(_plans(20), judge).cheapest("fast", budget)
    assert len(chosen.preset.steps) == wanted
    assert len({id(preset) for preset in judge.asked}) <= CANDIDATES


def test_plan_that_nothing_reaches_is_named() -> None:
    with pytest.raises(
        InputError, match=r"'fast'.*ssim=0\.999.*20 evaluations.*ssim=0\.995.*nothing was written"
    ):
        PlanChoice(_plans_of_one_branch(20), Judge()).cheapest("fast", QualityBudget(ssim=0.999))


def _plans_of_one_branch(count: int) -> list[tuple[PredictedPlan, ...]]:
    return [
        (
            replace(
                plan, preset=SpeedPreset(tuple(replace(step, branches=(2,)) for step in plan.preset.steps))
            ),
        )
        for (plan,) in _plans(count)
    ]


def test_amplitude_is_restored_by_the_audio_guidance() -> None:
    chosen = PlanChoice(_plans(20), Judge(mouth=0.85)).cheapest("fast", QualityBudget(ssim=0.98))
    assert chosen.preset.audio_guidance_factor == pytest.approx(0.85**-2, abs=1e-3)
    assert chosen.mean.mouth == pytest.approx(1, abs=1e-3)


def test_amplitude_needs_a_difference_that_is_evaluated() -> None:
    judge = Judge(mouth=0.85)
    with pytest.raises(InputError, match="amplitude=0.15"):
        PlanChoice(_plans_of_one_branch(5), judge).cheapest("fast", QualityBudget(ssim=0.9))
    assert {preset.audio_guidance_factor for preset in judge.asked} == {1.0}


@pytest.mark.parametrize(("similar", "shared"), [(0.99, True), (0.5, False)])
def test_no_preset_is_dearer_than_a_slower_one_that_would_do(
    tiny: SonicModel, examples: list[Example], tmp_path: Path, similar: float, shared: bool
) -> None:
    """Measures scatter, so that a faster preset can come out with more evaluations."""
    tuner = Tuner(tiny, examples, TuningOptions(SHORT, LOOSE), tmp_path, NoProgress())
    plans = [plan for (plan,) in _plans(6)]
    measures = replace(GOOD, ssim=similar)
    chosen = {
        name: Candidate(plans[number].preset, 0.1, (measures,))
        for name, number in (("balanced", 3), ("fast", 5), ("fastest", 1))
    }
    unseen = {name: replace(GOOD, psnr=float(number)) for number, name in enumerate(chosen)}
    expected = chosen["balanced" if shared else "fast"], unseen["balanced" if shared else "fast"]
    tuner._share_cheaper_plans(chosen, unseen)
    assert (chosen["fast"], unseen["fast"]) == expected
    assert chosen["fastest"].preset == plans[1].preset


def test_tuning_keeps_its_budgets_and_resumes(
    tiny: SonicModel, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TuningOptions(SHORT, LOOSE)
    tuner = Tuner(tiny, examples, options, tmp_path / "work", NoProgress())
    tuning = tuner.run()
    costs = [tuning.chosen[name].preset.evaluations for name in ("balanced", "fast", "fastest")]
    assert costs == sorted(costs, reverse=True) and costs[0] <= 0.6 * tuning.exact_evaluations
    for name, budget in LOOSE.items():
        assert not budget.broken(tuning.chosen[name].mean, 0.8) and not budget.broken(tuning.unseen[name])
        assert tuning.speeds.presets[name] == tuning.chosen[name].preset
    assert tuning.speeds.default == "balanced" and tuning.speeds.tuning["exact_evaluations"] == 3 * STEPS
    assert tuner.frames_of(None).shape == tuner.frames_of(tuning.chosen["fast"].preset).shape

    def generates(*_: object, **__: object) -> None:
        raise AssertionError("everything was measured before")

    monkeypatch.setattr(tune_module, "judge_plan", generates)
    monkeypatch.setattr(tune_module, "record_trajectory", generates)
    again = Tuner(tiny, examples, options, tmp_path / "work", NoProgress()).run()
    assert again.speeds == tuning.speeds and again.to_json() == tuning.to_json()
    with pytest.raises(AssertionError, match="measured before"):  # another clip is another tuning
        Tuner(tiny, examples[1:], options, tmp_path / "work", NoProgress()).run()


def test_command_writes_presets_and_report(bundle: Path, tmp_path: Path) -> None:
    arguments = ["tune", bundle, "--duration", 0.3, "--threads", 1, "--default", "fast"]
    arguments += ["--budget", "ssim=0.7,lip=none,amplitude=none,identity=none"]
    before = json.loads((bundle / "manifest.json").read_text())
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    speeds = open_bundle(bundle).manifest.speeds
    assert speeds.default == "fast" and speeds.tuning["examples"] and speeds != UNTUNED
    after = json.loads((bundle / "manifest.json").read_text())
    changed = {"speeds": None, "digest": None}
    assert {**before, **changed} == {**after, **changed}
    work = tmp_path / "tiny.tune"
    assert {"tuning.json", "frontier.png", "frames.png"} <= {path.name for path in work.iterdir()}
    numbers = json.loads((work / "tuning.json").read_text())
    assert [one["evaluations"] for one in numbers["candidates"]]
    assert "generations" in result.output and "fastest" in result.output
    video = load_model(bundle).generate(
        read_examples(BUILT_IN)[3].image, read_examples(BUILT_IN)[3].audio, duration=0.2, min_resolution=64
    )
    assert len(video) == 5

    saved = tmp_path / "presets.json"
    saved.write_text(json.dumps(speeds.to_json()))
    other = Path(shutil.copytree(PACKAGED_BUNDLES / "sonic-tiny", tmp_path / "other"))
    taken = CliRunner().invoke(main, ["tune", str(other), "--presets", str(saved)])
    assert taken.exit_code == 0 and open_bundle(other).manifest.speeds == speeds


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--audio-guidance", "7.5"], "--save"),
        (["--budget", "fast:lips=1"], "lips=1"),
        (["--examples", "{tmp}"], "holds no portrait"),
        (["--presets", "{tmp}/none.json"], "none.json does not exist"),
        (["--image-guidance", "2", "--audio-guidance", "2", "--save", "{tmp}/x.json"], "scales that differ"),
    ],
)
def test_bad_arguments_end_in_a_sentence(
    bundle: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    result = CliRunner().invoke(main, ["tune", str(bundle), *given])
    assert result.exit_code == 2 and sentence in result.output and "Traceback" not in result.output
    assert (bundle / "manifest.json").read_bytes() == before


def test_budget_that_nothing_meets_writes_nothing(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    arguments = ["tune", bundle, "--duration", 0.2, "--budget", "fastest:psnr=99"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 2 and "no plan keeps the budget of 'fastest'" in result.output
    assert (bundle / "manifest.json").read_bytes() == before


def test_presets_file_of_something_else_is_named(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "presets.json"
    path.write_text('{"default": "fast"}')
    result = CliRunner().invoke(main, ["tune", str(bundle), "--presets", str(path)])
    assert result.exit_code == 2 and "'presets' is missing" in result.output


def test_presets_evaluate_branches_that_exist() -> None:
    for preset in UNTUNED.presets.values():
        assert all(set(step.branches) <= set(ALL_BRANCHES) for step in preset.steps)
