"""Finds the speed presets of a bundle: ``sonic-convert tune BUNDLE``.

Two clips are generated with the published sampler and recorded; plans are searched on these recordings; a few
of them, chosen by bisection, are generated and judged; the cheapest within each preset's budget is taken, and
tried on a clip that the search has not seen. Whatever is done is kept in a work folder, from which an
interrupted run resumes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sonic.bundle.presets import EXACT_SPEED, PRESET_NAMES, SpeedName, SpeedPreset, SpeedPresets
from sonic.bundle.store import sha256_of
from sonic.diffusion.guidance import BRANCH_NAMES
from sonic.diffusion.plan import plan_denoising
from sonic.diffusion.steps import Guidance, evaluations_per_window, published_steps
from sonic.errors import InputError
from sonic.media.video import Video
from sonic.model import SonicModel
from sonic.options import GenerationOptions
from sonic.progress import NoProgress, Progress
from sonic.records import read_record
from sonic.storage.files import write_json
from sonic_calibration.recording.examples import Example, generate_example
from sonic_convert.tuning.budget import DEFAULT_BUDGETS, Measures, QualityBudget
from sonic_convert.tuning.choice import BUDGET_SHARE, Candidate, PlanChoice
from sonic_convert.tuning.judging import (
    ExactClip,
    denoised_frames,
    judge_plan,
    kept_exact_clip,
    save_array,
    shown_frames,
)
from sonic_convert.tuning.search import PredictedPlan, search_plans
from sonic_convert.tuning.trajectory import Trajectory, record_trajectory

TUNED_CLIPS = 2
#: Plans are searched up to this share of the published sampler's evaluations; beyond, little is saved.
LARGEST_SHARE = 0.6
CANDIDATES = 12  # about how many plans are judged
_TUNING_VERSION = "2"


@dataclass(frozen=True)
class TuningOptions:
    """What is tuned for.

    Attributes:
        clip: options of the clips; guidance scales in place of the bundle's, if they are given.
        budgets: of every preset but "exact".
        default: the preset that clips get when none is chosen.
    """

    clip: GenerationOptions = field(default_factory=GenerationOptions)
    budgets: Mapping[SpeedName, QualityBudget] = field(default_factory=lambda: dict(DEFAULT_BUDGETS))
    default: SpeedName = "balanced"


@dataclass(frozen=True)
class Tuning:
    """The result.

    Attributes:
        bundle: its name.
        exact_evaluations: of the published sampler per window.
        candidates: everything that was judged, the cheapest first.
        chosen: by preset.
        unseen: measures on the clip that the search has not seen, by preset; empty if there was none.
        speeds: the presets for the manifest, with what was tuned for.
    """

    bundle: str
    exact_evaluations: int
    candidates: tuple[Candidate, ...]
    chosen: Mapping[SpeedName, Candidate]
    unseen: Mapping[SpeedName, Measures]
    speeds: SpeedPresets

    def to_json(self) -> dict[str, Any]:
        """All numbers, for a file."""
        return {
            "bundle": self.bundle,
            "exact_evaluations": self.exact_evaluations,
            "candidates": [
                asdict(one) | {"evaluations": one.preset.evaluations, "mean": asdict(one.mean)}
                for one in self.candidates
            ],
            "unseen": {name: asdict(measures) for name, measures in self.unseen.items()},
            "speeds": self.speeds.to_json(),
        }


class Tuner:
    """One tuning, with everything that it keeps in its work folder.

    Args:
        model: the bundle; of any precision and engine.
        examples: portraits and speech: two to choose plans by, a third to try them on.
        options: what is tuned for.
        work: folder of intermediate results.
        progress: shows the stages.

    Raises:
        InputError: there are no examples, or the bundle's two guidance scales are equal.
    """

    def __init__(
        self,
        model: SonicModel,
        examples: Sequence[Example],
        options: TuningOptions,
        work: Path,
        progress: Progress | None = None,
    ) -> None:
        if not examples:
            raise InputError("there are no examples to tune with; give at least one portrait with speech")
        sampler = model.constants.sampler
        self._model, self._options = model, options
        self._progress = progress or NoProgress()
        self._guidance = Guidance.of(sampler, options.clip.image_guidance, options.clip.audio_guidance)
        self._steps = published_steps(sampler.steps, sampler, self._guidance)
        if not all({0, 2} <= set(step.branches) or step.image_scale == 1 for step in self._steps) or any(
            step.image_scale == step.audio_scale != 1 for step in self._steps
        ):
            raise InputError(
                f"the guidance scales of image and audio are both {self._guidance.image[0]:g}, and have no "
                f"difference of their own for the {BRANCH_NAMES[1]}; tune for scales that differ"
            )
        self._examples = tuple(examples[:TUNED_CLIPS])
        self._unseen = examples[TUNED_CLIPS] if len(examples) > TUNED_CLIPS else None
        self._work = work / self._key()
        self._measured: dict[str, Candidate] = {}

    @property
    def exact_evaluations(self) -> int:
        """Evaluations of the UNet per window with the published sampler."""
        return evaluations_per_window(self._steps)

    @property
    def examples(self) -> tuple[Example, ...]:
        """The examples that are generated."""
        return (*self._examples, *([self._unseen] if self._unseen else []))

    @property
    def tuned_clips(self) -> int:
        """How many of the examples plans are chosen by."""
        return len(self._examples)

    @property
    def clip_options(self) -> GenerationOptions:
        """The options of the clips with the published sampler."""
        return replace(self._options.clip, speed=EXACT_SPEED, inference_steps=None, sigmas=None)

    def run(self) -> Tuning:
        """Tune.

        Raises:
            InputError: no plan keeps a budget, or an example cannot be used.
            BundleError: the bundle cannot be run.
            OutputError: the work folder cannot be written.
        """
        exact = [self._exact(index, example) for index, example in enumerate(self._examples)]
        trajectories = [Trajectory.load(self._trajectory_path(index)) for index in range(len(exact))]
        with self._progress.stage("searching plans", 1) as advance:
            largest = max(1, round(LARGEST_SHARE * self.exact_evaluations))
            plans = search_plans(trajectories, largest)
            advance()
        chosen: dict[SpeedName, Candidate] = {}
        unseen: dict[SpeedName, Measures] = {}
        with self._progress.stage("judging plans", min(len(plans), CANDIDATES)) as advance:
            search = PlanChoice(plans, lambda plan: self._judge(plan, exact, advance))
            for name in reversed(PRESET_NAMES):
                chosen[name] = search.cheapest(name, self._options.budgets[name])
        if self._unseen is not None:
            clip = self._exact(TUNED_CLIPS, self._unseen)
            for name in reversed(PRESET_NAMES):
                chosen[name], unseen[name] = self._confirm(name, chosen[name], search, clip)
        self._share_cheaper_plans(chosen, unseen)
        return self._result(chosen, unseen)

    def frames_of(self, preset: SpeedPreset | None) -> np.ndarray:
        """Some frames of the first clip with a plan, or with the published sampler."""
        path = self._shown_path("exact" if preset is None else _name_of(preset))
        frames: np.ndarray = np.load(path, allow_pickle=False)
        return frames

    def _result(self, chosen: dict[SpeedName, Candidate], unseen: dict[SpeedName, Measures]) -> Tuning:
        measured = sorted(self._measured.values(), key=lambda one: one.preset.evaluations)
        notes = {
            "examples": [example.image.name for example in self.examples],
            "guidance": asdict(self._guidance),
            "exact_evaluations": self.exact_evaluations,
            "budgets": {name: str(budget) for name, budget in self._options.budgets.items()},
            "measured": {name: asdict(one.mean) for name, one in chosen.items()},
            "unseen": {name: asdict(measures) for name, measures in unseen.items()},
        }
        presets = {name: chosen[name].preset for name in PRESET_NAMES}
        return Tuning(
            bundle=self._model.manifest.name,
            exact_evaluations=self.exact_evaluations,
            candidates=tuple(measured),
            chosen=chosen,
            unseen=unseen,
            speeds=SpeedPresets(self._options.default, presets, notes),
        )

    def _confirm(
        self, name: SpeedName, candidate: Candidate, search: PlanChoice, clip: ExactClip
    ) -> tuple[Candidate, Measures]:
        """The cheapest plan, from `candidate` on, that keeps its budget on a clip that was not searched."""
        budget = self._options.budgets[name]
        while True:
            measures = self._measure(candidate.preset, TUNED_CLIPS, clip)
            if not budget.broken(measures):
                return candidate, measures
            candidate = search.cheapest(name, budget, candidate.preset.evaluations + 1)

    def _share_cheaper_plans(
        self, chosen: dict[SpeedName, Candidate], unseen: dict[SpeedName, Measures]
    ) -> None:
        """Give a preset the plan of a slower one that came out cheaper, where that keeps its budget too."""
        for slower, faster in pairwise(PRESET_NAMES):
            budget, cheaper = self._options.budgets[faster], chosen[slower]
            if cheaper.preset.evaluations >= chosen[faster].preset.evaluations:
                continue
            if not budget.broken(cheaper.mean, BUDGET_SHARE) and (
                slower not in unseen or not budget.broken(unseen[slower])
            ):
                chosen[faster] = cheaper
                if slower in unseen:
                    unseen[faster] = unseen[slower]

    def _exact(self, index: int, example: Example) -> ExactClip:
        """A clip with the published sampler; those that plans are chosen by are recorded."""
        path, generate = self._work / f"exact-{index}.npy", generate_example
        if index < TUNED_CLIPS:
            generate = partial(self._record, index)
            if not self._trajectory_path(index).is_file():
                path.unlink(missing_ok=True)
        with self._progress.stage(f"published sampler, {example.image.name}", 1) as advance:
            clip = kept_exact_clip(self._model, example, self._options.clip, path, generate=generate)
            advance()
        return clip

    def _record(self, index: int, model: SonicModel, example: Example, options: GenerationOptions) -> Video:
        frames = denoised_frames(model, example, options)
        plan = plan_denoising(frames, self._steps, model.constants.sampler)
        video, trajectory = record_trajectory(model, example, plan, options)
        trajectory.save(self._trajectory_path(index))
        if index == 0:
            save_array(self._shown_path("exact"), shown_frames(video))
        return video

    def _judge(
        self, plan: PredictedPlan, clips: Sequence[ExactClip], advance: Callable[[], None]
    ) -> Candidate:
        name = _name_of(plan.preset)
        if name not in self._measured:
            measures = tuple(self._measure(plan.preset, index, clip) for index, clip in enumerate(clips))
            self._measured[name] = Candidate(plan.preset, plan.predicted_error, measures)
            if len(self._measured) < CANDIDATES:  # the bar is full when the last one is judged
                advance()
        return self._measured[name]

    def _measure(self, preset: SpeedPreset, index: int, clip: ExactClip) -> Measures:
        name = _name_of(preset)
        path = self._work / f"measured-{name}-{index}.json"
        if not path.is_file():
            measures, shown = judge_plan(self._model, preset, clip)
            if index == 0:
                save_array(self._shown_path(name), shown)
            write_json(path, asdict(measures))
        return read_record(Measures, path.read_text(encoding="utf-8"), str(path), InputError, "remove it")

    def _trajectory_path(self, index: int) -> Path:
        return self._work / f"trajectory-{index}.npz"

    def _shown_path(self, name: str) -> Path:
        return self._work / f"frames-{name}.npy"

    def _key(self) -> str:
        """A digest of everything that the measurements depend on."""
        manifest = self._model.manifest
        clip = asdict(self._options.clip)
        read = [
            _TUNING_VERSION,
            *(file.sha256 for file in manifest.files),
            json.dumps(asdict(manifest.constants)),
            json.dumps(clip, default=str),
            *(sha256_of(path) for one in self.examples for path in (one.image, one.audio)),
        ]
        return hashlib.sha256("\n".join(read).encode()).hexdigest()[:12]


def _name_of(preset: SpeedPreset) -> str:
    return hashlib.sha256(json.dumps(asdict(preset)).encode()).hexdigest()[:12]
