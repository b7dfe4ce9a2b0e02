"""Searches plans on recorded trajectories: which noise levels, and which guidance branches at each.

    for alternatives in search_plans(trajectories, maximum_evaluations=40):
        print([(plan.preset.evaluations, plan.predicted_error) for plan in alternatives])

The error of a plan is predicted as a sum over its steps, so that dynamic programming finds the best plan for
every number of evaluations. A step from level s to t contributes

- what a straight line misses: ||x_t - (x_s + (t - s) d_s)||^2 for the recorded latents x and derivatives d,
  the cost of GITS (Chen et al., "On the Trajectory Regularity of ODE-based Diffusion Sampling", 2024);
- what guidance misses: the part of a difference between branches that the least-squares multiple of the last
  evaluated one leaves, times its weight (guidance scale - 1), in units of the next latents.

Both count by how far they reach the result: 1 / (1 + (t / sigma_data)^2), as a denoiser replaces what is
below the noise. Without that factor, GITS spends its steps where the result does not notice them: with six
levels, sonic-tiny's SSIM to the published sampler was 0.967 without it, and 0.998 with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonic.bundle.presets import BRANCH_SETS, SpeedPreset, StepRule
from sonic_convert.tuning.trajectory import Trajectory

#: Karras et al. (2022), table 1, and about the standard deviation of Stable Video Diffusion's latents.
#: Neither is the better one for all checkpoints and budgets, so that plans of both are tried.
SIGMAS_DATA = (0.5, 1.0)
#: Errors of guidance count more than those of straight lines: they have one sign, so that steps add them up.
GUIDANCE_WEIGHT = 2.0


@dataclass(frozen=True)
class PredictedPlan:
    """A plan, and the error that is predicted for its result.

    Attributes:
        preset: the plan.
        predicted_error: root mean square of the latents' error, in their unit.
    """

    preset: SpeedPreset
    predicted_error: float


def search_plans(
    trajectories: Sequence[Trajectory], maximum_evaluations: int
) -> list[tuple[PredictedPlan, ...]]:
    """The plans with the smallest predicted error for every number of evaluations, the cheapest first.

    Each number has a plan for every value of `SIGMAS_DATA`, unless they agree, or one with fewer evaluations
    is predicted to be as good.

    Args:
        trajectories: of at least one clip, all at the same levels and guidance scales.
        maximum_evaluations: of the UNet per window, at least 1.
    """
    statistics = _Statistics.of(trajectories)
    plans: dict[int, list[PredictedPlan]] = {}
    for sigma_data in SIGMAS_DATA:
        table = _Table(statistics, maximum_evaluations, sigma_data)
        smallest = np.inf
        for evaluations in range(1, maximum_evaluations + 1):
            error = table.error(evaluations)
            if error < smallest:
                smallest = error
                preset = statistics.preset(table.choices(evaluations))
                known = plans.setdefault(evaluations, [])
                if all(plan.preset != preset for plan in known):
                    known.append(PredictedPlan(preset, error))
    return [tuple(plans[evaluations]) for evaluations in sorted(plans)]


@dataclass(frozen=True)
class _Statistics:
    """Mean squares and products of trajectories.

    Attributes:
        sigmas: (levels + 1,), the last one zero.
        straight: (levels, levels + 1), the mean square that a straight line from one level misses at another.
        products: for the image's and the audio's differences, (levels, levels): mean products between levels.
        weights: for both, (levels,): the squared weight in the guided prediction.
    """

    sigmas: NDArray[np.float64]
    straight: NDArray[np.float64]
    products: tuple[NDArray[np.float64], NDArray[np.float64]]
    weights: tuple[NDArray[np.float64], NDArray[np.float64]]

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> _Statistics:
        sigmas, scales = trajectories[0].sigmas, trajectories[0].scales
        levels = len(scales)
        straight = np.full((levels, levels + 1), np.inf)
        for start in range(levels):
            for end in range(start + 1, levels + 1):
                straight[start, end] = np.mean([_missed(one, start, end) for one in trajectories])
        image = np.mean([_products(one.image_differences) for one in trajectories], axis=0)
        audio = np.mean([_products(one.audio_differences) for one in trajectories], axis=0)
        image_weights, audio_weights = (scales.T - 1) ** 2
        return cls(sigmas, straight, (image, audio), (image_weights, audio_weights))

    def residuals(self, difference: int) -> NDArray[np.float64]:
        """(levels, levels + 1): what a difference misses at a level if reused from another, weighted.

        The last column is for leaving it out.
        """
        products = self.products[difference]
        squares = np.diag(products)
        with np.errstate(divide="ignore", invalid="ignore"):
            explained = np.where(squares > 0, products**2 / squares, 0.0)
        left = np.maximum(squares[:, None] - explained, 0.0)
        return np.hstack([left, squares[:, None]]) * self.weights[difference][:, None]

    def reach(self, sigma_data: float) -> NDArray[np.float64]:
        """(levels + 1,): the share of a squared error at a level that reaches the result."""
        share: NDArray[np.float64] = 1 / (1 + (self.sigmas / sigma_data) ** 2)
        return share

    def guidance_gain(self) -> NDArray[np.float64]:
        """(levels, levels + 1): how a prediction's squared error enters the latents of the next level."""
        start, end = self.sigmas[:-1, None], self.sigmas[None, :]
        # denoised = -sigma / sqrt(sigma^2 + 1) * prediction + ...; the latents take (1 - end / start) of it.
        gain: NDArray[np.float64] = start**2 / (start**2 + 1) * (1 - end / start) ** 2
        return gain

    def preset(self, choices: Sequence[tuple[int, tuple[int, ...]]]) -> SpeedPreset:
        """The plan of these levels and branches, with the least-squares multiples of reused differences."""
        last: list[int | None] = [None, None]
        rules = []
        for level, branches in choices:
            multiples = [0.0, 0.0]
            for difference, needed in enumerate(({0, 1}, {1, 2})):
                source = last[difference]
                if needed <= set(branches):
                    last[difference] = level
                elif source is not None:
                    products = self.products[difference]
                    multiples[difference] = round(
                        float(products[level, source] / products[source, source]), 4
                    )
            rules.append(StepRule(float(self.sigmas[level]), branches, *multiples))
        return SpeedPreset(tuple(rules))


def _missed(trajectory: Trajectory, start: int, end: int) -> float:
    step = np.float32(trajectory.sigmas[end] - trajectory.sigmas[start])
    line = trajectory.latents[start] + step * trajectory.derivatives[start]
    return float(np.mean(np.square(trajectory.latents[end] - line), dtype=np.float64))


def _products(differences: np.ndarray) -> NDArray[np.float64]:
    flat = differences.reshape(len(differences), -1).astype(np.float64)
    products: NDArray[np.float64] = flat @ flat.T / flat.shape[1]
    return products


class _Table:
    """The smallest error of any plan, by evaluations used and by state.

    A state is the next level, and the levels at which the image's and the audio's difference were evaluated
    last (the number of levels stands for never).
    """

    def __init__(self, statistics: _Statistics, maximum_evaluations: int, sigma_data: float) -> None:
        self._levels = levels = len(statistics.sigmas) - 1
        shape = (maximum_evaluations + 1, levels + 1, levels + 1, levels + 1)
        self._errors = np.full(shape, np.inf)
        self._previous = np.full((*shape, 4), -1, np.int16)  # level, the two sources, branches
        self._errors[0, 0, levels, levels] = 0.0
        reach = statistics.reach(sigma_data)
        straight = statistics.straight * reach
        gain = GUIDANCE_WEIGHT * statistics.guidance_gain() * reach
        residuals = [statistics.residuals(difference) for difference in range(2)]
        for used in range(maximum_evaluations):
            for level in range(levels):
                known = self._errors[used, level]
                if not np.isfinite(known).any():
                    continue
                for number, branches in enumerate(BRANCH_SETS):
                    if used + len(branches) > maximum_evaluations:
                        continue
                    image = 0.0 if {0, 1} <= set(branches) else residuals[0][level][:, None]
                    audio = 0.0 if {1, 2} <= set(branches) else residuals[1][level][None, :]
                    for following in range(level + 1, levels + 1):
                        error = known + straight[level, following] + gain[level, following] * (image + audio)
                        self._update(used + len(branches), following, level, number, error)

    def error(self, evaluations: int) -> float:
        """The root of the smallest error of plans with this many evaluations."""
        return float(np.sqrt(self._errors[evaluations, self._levels].min()))

    def choices(self, evaluations: int) -> list[tuple[int, tuple[int, ...]]]:
        """The levels and branches of the best plan."""
        final = self._errors[evaluations, self._levels]
        image, audio = (int(index) for index in np.unravel_index(int(final.argmin()), final.shape))
        state = (evaluations, self._levels, image, audio)
        found: list[tuple[int, tuple[int, ...]]] = []
        while state[0]:
            level, image, audio, number = (int(value) for value in self._previous[state])
            found.append((level, BRANCH_SETS[number]))
            state = (state[0] - len(BRANCH_SETS[number]), level, image, audio)
        return found[::-1]

    def _update(self, used: int, following: int, level: int, number: int, error: NDArray[np.float64]) -> None:
        """Enter the states that a step leads to, where it beats what is known."""
        indices = np.indices(error.shape)
        images, audios = indices[0], indices[1]
        branches = set(BRANCH_SETS[number])
        if {1, 2} <= branches:  # the audio's difference is now this level's, wherever it came from
            best = error.argmin(axis=1)[:, None]
            error, audios = np.take_along_axis(error, best, 1), np.take_along_axis(audios, best, 1)
            images = images[:, :1]
        if {0, 1} <= branches:
            best = error.argmin(axis=0)[None]
            error = np.take_along_axis(error, best, 0)
            images, audios = np.take_along_axis(images, best, 0), np.take_along_axis(audios, best, 0)
        rows = slice(level, level + 1) if {0, 1} <= branches else slice(None)
        columns = slice(level, level + 1) if {1, 2} <= branches else slice(None)
        known = self._errors[used, following, rows, columns]
        better = error < known
        known[better] = error[better]
        entry = np.stack(np.broadcast_arrays(level, images, audios, number), axis=-1)
        self._previous[used, following, rows, columns][better] = entry[better]
