"""Denoising with presets, against a slow sampler that is obviously right, and "exact" to the last bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.bundle.constants import SamplerConstants
from sonic.bundle.presets import ALL_BRANCHES, BRANCH_SETS, UNTUNED, SpeedPreset, StepRule
from sonic.diffusion.denoising import denoise_together
from sonic.diffusion.noise import draw_noise
from sonic.diffusion.plan import plan_denoising
from sonic.diffusion.sampler import ClipCondition, ClipSampler
from sonic.diffusion.schedule import karras_sigmas, schedule_position
from sonic.diffusion.steps import Guidance, StepSettings, preset_steps, published_steps, steps_at_levels
from sonic.storage.spool import ArraySpool

CONSTANTS = SamplerConstants()
HEIGHT = WIDTH = 2


def answer(
    noisy: np.ndarray,
    reference: np.ndarray,
    tokens: np.ndarray,
    embedding: np.ndarray,
    buckets: np.ndarray,
    timestep: float,
) -> np.ndarray:
    """What stands for the UNet: depends on all that a branch is given, and on all frames of the window."""
    speech = tokens.mean(axis=(1, 2))[:, None, None, None]
    whole = noisy.mean(axis=0, keepdims=True)
    result: np.ndarray = (
        0.5 * np.tanh(noisy + 0.3 * timestep)
        + 0.2 * np.tanh(whole)
        + 0.3 * reference
        + 0.2 * embedding.mean()
        + 0.1 * speech * (1 + timestep) * np.cos(noisy)
        + 0.01 * buckets.sum()
    )
    return result


class FormulaUNet:
    """`answer` as a submodel; notes the branches it was asked for, by step and window."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> dict[str, np.ndarray]:
        (branch,) = tags["branches"]
        self.asked.append((tags["step"], tags["window"], branch))
        sample = inputs["sample"][0]
        predicted = answer(
            sample[:, :4],
            sample[:, 4:],
            inputs["audio_tokens"][0],
            inputs["image_embedding"][0],
            inputs["added_time_ids"][0, 1:],
            float(inputs["timestep"][0]),
        )
        return {"prediction": predicted[None].astype(np.float32)}

    def __enter__(self) -> FormulaUNet:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


def condition_of(frames: int, seed: int) -> ClipCondition:
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    return ClipCondition(
        reference_latent=normal(4, HEIGHT, WIDTH),
        image_embedding=normal(3),
        audio_tokens=normal(frames, 2, 3) + np.float32(1),
        unconditional_tokens=normal(2, 3) * np.float32(0.1),
        buckets=np.abs(normal(frames, 2)) * np.float32(10),
        masks=[np.ones((1, 1, HEIGHT, WIDTH), np.float32)],
    )


def branch_predictions(
    latents: np.ndarray,
    frames: list[int],
    sigma: float,
    condition: ClipCondition,
    kind: type[np.floating[Any]],
) -> list[np.ndarray]:
    """The predictions for one window without the image and audio, with the image, and with both."""
    noisy = latents[frames] * kind(1 / math.sqrt(sigma**2 + 1))
    reference = np.stack([condition.reference_latent] * len(frames)).astype(kind)
    embedding = condition.image_embedding.astype(kind)
    silence = np.stack([condition.unconditional_tokens] * len(frames)).astype(kind)
    speech = np.asarray(condition.audio_tokens)[frames].astype(kind)
    buckets = condition.buckets[frames].mean(axis=0).astype(kind)
    timestep = float(kind(0.25 * math.log(sigma)))
    return [
        answer(noisy, shown, tokens, known, buckets, timestep).astype(kind)
        for shown, tokens, known in (
            (np.zeros_like(reference), silence, np.zeros_like(embedding)),
            (reference, silence, embedding),
            (reference, speech, embedding),
        )
    ]


def windows_of(frames: int, step: int, constants: SamplerConstants) -> list[list[int]]:
    stride = constants.window_frames - constants.window_overlap_frames
    return [
        [
            (start - step * constants.window_shift_frames + offset) % frames
            for offset in range(constants.window_frames)
        ]
        for start in range(0, frames, stride)
    ]


def stepped(latent: Any, prediction: Any, sigma: float, next_sigma: float) -> Any:
    """Euler's step of a v-prediction model (Karras et al. 2022)."""
    denoised = prediction * (-sigma / math.sqrt(sigma**2 + 1)) + latent / (sigma**2 + 1)
    return latent + (latent - denoised) / sigma * (next_sigma - sigma)


def slow_sampler(
    noise: np.ndarray,
    condition: ClipCondition,
    preset: SpeedPreset,
    guidance: Guidance,
    constants: SamplerConstants,
) -> np.ndarray:
    """What a preset means, frame by frame in float64: every branch is known, and used as its rule says."""
    latents = noise.astype(float) * preset.steps[0].sigma
    latents += condition.reference_latent.astype(float) * constants.initial_latent_scale
    last: dict[str, dict[int, Any]] = {"image": {}, "audio": {}}
    levels = [rule.sigma for rule in preset.steps] + [0.0]
    for number, rule in enumerate(preset.steps):
        position = schedule_position(rule.sigma, constants)
        image_scale = guidance.image[0] + position * (guidance.image[1] - guidance.image[0])
        audio_scale = guidance.audio[0] + position * (guidance.audio[1] - guidance.audio[0])
        audio_scale *= preset.audio_guidance_factor
        results: dict[int, list[Any]] = {frame: [] for frame in range(len(noise))}
        evaluated: dict[str, dict[int, list[Any]]] = {"image": {}, "audio": {}}
        for window in windows_of(len(noise), number, constants):
            neither, image, both = branch_predictions(latents, window, rule.sigma, condition, np.float64)
            for place, frame in enumerate(window):
                used: dict[str, Any] = {}
                for name, needed, difference, multiple in (
                    ("image", {0, 1}, image - neither, rule.image_reuse),
                    ("audio", {1, 2}, both - image, rule.audio_reuse),
                ):
                    if needed <= set(rule.branches):
                        used[name] = difference[place]
                        evaluated[name].setdefault(frame, []).append(difference[place])
                    else:
                        used[name] = multiple * last[name].get(frame, 0.0)
                guided = both[place] + (audio_scale - 1) * used["audio"] + (image_scale - 1) * used["image"]
                results[frame].append(stepped(latents[frame], guided, rule.sigma, levels[number + 1]))
        for name, by_frame in evaluated.items():
            for frame, differences in by_frame.items():
                last[name][frame] = np.mean(differences, axis=0)
        latents = np.stack([np.mean(results[frame], axis=0) for frame in range(len(noise))])
    return latents


def denoise(
    noise: np.ndarray,
    condition: ClipCondition,
    steps: Sequence[StepSettings],
    constants: SamplerConstants = CONSTANTS,
    calls_at_once: int = 1,
    unet: FormulaUNet | None = None,
) -> np.ndarray:
    plan = plan_denoising(len(noise), steps, constants)
    sampler = ClipSampler(noise, condition, plan, constants)
    denoise_together([sampler], unet or FormulaUNet(), calls_at_once)
    return np.asarray(sampler.latents)


FRAMES = (1, 7, 25, 26, 40, 53)  # shorter than a window, one, and with a window that wraps around
MULTIPLES = st.sampled_from([0.0, 0.4, 1.0, -0.3])


LEVELS = [(700.0,), (700.0, 3.0), (700.0, 9.0, 1.2, 0.2), (80.0, 12.0, 4.0, 1.4, 0.3)]


@st.composite
def presets(draw: st.DrawFn) -> SpeedPreset:
    levels = draw(st.sampled_from(LEVELS))
    rules = [
        StepRule(level, draw(st.sampled_from(BRANCH_SETS)), draw(MULTIPLES), draw(MULTIPLES))
        for level in levels
    ]
    return SpeedPreset(tuple(rules), draw(st.sampled_from([1.0, 1.2, 0.5])))


SCALES = st.sampled_from([(1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (0.0, 0.0), (2.5, 2.0)])


@settings(deadline=None, max_examples=120)
@given(
    st.sampled_from(FRAMES),
    presets(),
    SCALES,
    st.sampled_from([(1.0, 1.0), (7.5, 7.5), (3.0, 3.0), (7.5, 4.0)]),
    st.sampled_from([0, 5]),
    st.integers(0, 2**20),
)
def test_a_preset_is_its_formula(
    frames: int,
    preset: SpeedPreset,
    image: tuple[float, float],
    audio: tuple[float, float],
    overlap: int,
    seed: int,
) -> None:
    constants = replace(CONSTANTS, window_overlap_frames=overlap)
    noise, condition = draw_noise(seed, frames, 4, HEIGHT, WIDTH), condition_of(frames, seed)
    guidance = Guidance(image, audio)
    found = denoise(noise, condition, preset_steps(preset, constants, guidance), constants)
    expected = slow_sampler(noise, condition, preset, guidance, constants)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)


REUSING = SpeedPreset(
    (
        StepRule(700.0, ALL_BRANCHES),
        StepRule(12.0, (1, 2), image_reuse=0.8),
        StepRule(4.0, (2,), image_reuse=0.5, audio_reuse=0.7),
        StepRule(1.0, (1, 2), image_reuse=0.5),
        StepRule(0.2, (2,), audio_reuse=1.0),
    )
)


@pytest.mark.parametrize("frames", FRAMES)
def test_what_is_reused_matters_and_is_the_last_evaluated(frames: int) -> None:
    """The formula is met, and far from the same preset without reuse: the test above tells them apart."""
    noise, condition = draw_noise(3, frames, 4, HEIGHT, WIDTH), condition_of(frames, 3)
    guidance = Guidance.of(CONSTANTS)
    found = denoise(noise, condition, preset_steps(REUSING, CONSTANTS))
    expected = slow_sampler(noise, condition, REUSING, guidance, CONSTANTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)
    for dropped in ("image_reuse", "audio_reuse"):
        without = tuple(replace(rule, **{dropped: 0.0}) for rule in REUSING.steps)
        other = denoise(noise, condition, preset_steps(replace(REUSING, steps=without), CONSTANTS))
        assert np.abs(other - found).max() > 0.1


def test_only_the_branches_of_a_rule_are_asked() -> None:
    frames, unet = 30, FormulaUNet()
    denoise(
        draw_noise(0, frames, 4, 2, 2), condition_of(frames, 0), preset_steps(REUSING, CONSTANTS), unet=unet
    )
    expected = [
        (step, window, branch)
        for step, rule in enumerate(REUSING.steps)
        for window in range(2)
        for branch in rule.branches
    ]
    assert unet.asked == expected
    assert len(expected) == 2 * REUSING.evaluations == 2 * 9


@pytest.mark.parametrize(("image", "audio", "branches"), [
    (1.0, 7.5, [(1, 2), (1, 2), (2,), (1, 2), (2,)]),  # the image's difference has no weight
    (2.0, 1.0, [(0, 1, 2), (2,), (2,), (2,), (2,)]),
    (1.0, 1.0, [(2,)] * 5),
    (3.0, 3.0, [(0, 1, 2), (1, 2), (2,), (1, 2), (2,)]),  # branch 1 is needed for the differences
])  # fmt: skip
def test_branches_that_count_for_nothing_are_not_evaluated(
    image: float, audio: float, branches: list[tuple[int, ...]]
) -> None:
    steps = preset_steps(REUSING, CONSTANTS, Guidance.of(CONSTANTS, image, audio))
    assert [step.branches for step in steps] == branches


@pytest.mark.parametrize("calls_at_once", [1, 3])
@pytest.mark.parametrize("frames", FRAMES)
def test_reuse_on_disk_and_in_parallel_gives_the_same_bytes(
    frames: int, calls_at_once: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noise, condition = draw_noise(1, frames, 4, HEIGHT, WIDTH), condition_of(frames, 1)
    steps = preset_steps(REUSING, CONSTANTS)
    expected = denoise(noise, condition, steps)

    def on_disk(*arguments: Any, **options: Any) -> ArraySpool:
        return ArraySpool(*arguments, memory_limit_bytes=0, **options)

    monkeypatch.setattr("sonic.diffusion.frame_means.ArraySpool", on_disk)
    plan = plan_denoising(frames, steps, CONSTANTS)
    sampler = ClipSampler(iter(noise), condition, plan, CONSTANTS, tmp_path)
    assert set(sampler.state) == {"latents", "image_differences", "audio_differences"}
    denoise_together([sampler], FormulaUNet(), calls_at_once)
    assert all(rows.on_disk and rows.shape == noise.shape for rows in sampler.state.values())
    np.testing.assert_array_equal(np.asarray(sampler.latents), expected)


def test_what_is_not_reused_is_not_kept() -> None:
    noise, condition = draw_noise(0, 5, 4, HEIGHT, WIDTH), condition_of(5, 0)
    for preset in UNTUNED.presets.values():
        plan = plan_denoising(5, preset_steps(preset, CONSTANTS), CONSTANTS)
        assert set(ClipSampler(noise, condition, plan, CONSTANTS).state) == {"latents"}
    only_audio = SpeedPreset((StepRule(9.0), StepRule(1.0, (2,), audio_reuse=0.5)))
    plan = plan_denoising(5, preset_steps(only_audio, CONSTANTS), CONSTANTS)
    assert set(ClipSampler(noise, condition, plan, CONSTANTS).state) == {"latents", "audio_differences"}


def published_sampler(
    noise: np.ndarray,
    condition: ClipCondition,
    count: int,
    constants: SamplerConstants,
) -> np.ndarray:
    """The published rule in float32, with operations in the order that fixes the last bit."""
    sigmas = karras_sigmas(count, constants)
    image = np.linspace(*constants.image_guidance, count, dtype=np.float32)
    audio = np.linspace(*constants.audio_guidance, count, dtype=np.float32)
    start = condition.reference_latent * np.float32(constants.initial_latent_scale)
    latents = noise * np.float32(sigmas[0]) + start
    for step in range(count):
        sigma, next_sigma = float(sigmas[step]), float(sigmas[step + 1])
        total, times = np.zeros_like(latents), np.zeros(len(noise), np.float32)
        for window in windows_of(len(noise), step, constants):
            v0, v1, v2 = branch_predictions(latents, window, sigma, condition, np.float32)
            weights = (1 - float(image[step]), float(image[step]) - float(audio[step]), float(audio[step]))
            if all(weights):
                guided = v0 + image[step] * (v1 - v0) + audio[step] * (v2 - v1)
            else:
                guided = np.sum(
                    [np.float32(w) * v for w, v in zip(weights, (v0, v1, v2), strict=True) if w], axis=0
                )
            results = stepped(latents[window], guided, sigma, next_sigma)
            for frame, result in zip(window, results, strict=True):
                total[frame] += result
                times[frame] += 1
        latents = total / times[:, None, None, None]
    return latents


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize(
    ("image", "audio"),
    [
        ((2.0, 2.0), (7.5, 7.5)),
        ((1.0, 1.0), (7.5, 7.5)),
        ((3.0, 3.0), (3.0, 3.0)),
        ((1.0, 1.0), (1.0, 1.0)),
        ((2.0, 3.0), (7.5, 4.3)),
    ],
)
@pytest.mark.parametrize("overlap", [0, 5])
def test_exact_is_the_published_sampler_bit_for_bit(
    frames: int, image: tuple[float, float], audio: tuple[float, float], overlap: int
) -> None:
    constants = replace(CONSTANTS, image_guidance=image, audio_guidance=audio, window_overlap_frames=overlap)
    noise, condition = draw_noise(2, frames, 4, HEIGHT, WIDTH), condition_of(frames, 2)
    found = denoise(noise, condition, published_steps(5, constants), constants)
    expected = published_sampler(noise, condition, 5, constants)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize(("image", "audio"), [(2.0, 7.5), (1.0, 7.5), (3.0, 3.0), (1.0, 1.0), (0.0, 0.0)])
def test_a_preset_and_levels_that_are_the_published_ones_give_the_same_bytes(
    frames: int, image: float, audio: float
) -> None:
    guidance = Guidance.of(CONSTANTS, image, audio)
    noise, condition = draw_noise(4, frames, 4, HEIGHT, WIDTH), condition_of(frames, 4)
    levels = [float(sigma) for sigma in karras_sigmas(7, CONSTANTS)[:-1]]
    exact = denoise(noise, condition, published_steps(7, CONSTANTS, guidance))
    preset = SpeedPreset.at_levels(levels)
    for steps in (preset_steps(preset, CONSTANTS, guidance), steps_at_levels(levels, CONSTANTS, guidance)):
        np.testing.assert_array_equal(denoise(noise, condition, steps), exact)
