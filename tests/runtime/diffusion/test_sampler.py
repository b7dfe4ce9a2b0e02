"""Schedule, ring windows and padding windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.bundle.constants import SamplerConstants
from sonic.diffusion.conditioning import SlidingWindows
from sonic.diffusion.decoding import hold_last, interpolate, quantize
from sonic.diffusion.denoising import denoise_together
from sonic.diffusion.noise import draw_noise
from sonic.diffusion.plan import plan_denoising, step_windows
from sonic.diffusion.sampler import ClipCondition, ClipSampler
from sonic.diffusion.schedule import euler_step, input_scale, karras_sigmas, model_timestep
from sonic.diffusion.steps import published_steps
from sonic.engines.checked import NotFinite
from sonic.errors import BundleError
from sonic.storage.spool import ArraySpool

CONSTANTS = SamplerConstants()


@pytest.mark.parametrize("steps", [1, 2, 25, 50])
def test_schedule_is_diffusers(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True,
        sigma_min=0.002, sigma_max=700.0, timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    sigmas = karras_sigmas(steps, CONSTANTS)
    np.testing.assert_allclose(sigmas, scheduler.sigmas.numpy(), rtol=1e-6)
    times = [model_timestep(float(s))[0] for s in sigmas[:-1]]
    np.testing.assert_allclose(times, scheduler.timesteps.numpy(), rtol=1e-5, atol=1e-6)
    generator = np.random.default_rng(0)
    latents, prediction = generator.standard_normal((2, 3, 4)).astype(np.float32)
    for index, timestep in enumerate(scheduler.timesteps):
        scheduler._step_index = None
        expected_input = scheduler.scale_model_input(torch.from_numpy(latents), timestep).numpy()
        scaled = latents * np.float32(input_scale(float(sigmas[index])))
        np.testing.assert_allclose(scaled, expected_input, rtol=1e-5)
        expected = scheduler.step(torch.from_numpy(prediction), timestep, torch.from_numpy(latents))
        found = euler_step(latents, prediction, float(sigmas[index]), float(sigmas[index + 1]))
        np.testing.assert_allclose(found, expected.prev_sample.numpy(), rtol=1e-4, atol=1e-4)


@given(st.integers(1, 200), st.integers(0, 60))
def test_windows_cover_the_ring(frames: int, step: int) -> None:
    windows = step_windows(frames, step, CONSTANTS)
    assert len(windows) == -(-frames // 25)
    assert all(len(window) == 25 for window in windows)
    assert set(np.concatenate(windows)) == set(range(frames))
    assert windows[0][0] == (-7 * step) % frames


class LinearUNet:
    """Answers with a tenth of its noisy input."""

    def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> dict[str, np.ndarray]:
        return {"prediction": inputs["sample"][:, :, :4] * np.float32(0.1)}

    def __enter__(self) -> LinearUNet:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class BrokenUNet(LinearUNet):
    def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> dict[str, np.ndarray]:
        raise NotFinite("as the engine says it")


def condition(frames: int) -> ClipCondition:
    return ClipCondition(
        np.zeros((4, 2, 2), np.float32),
        np.zeros(3, np.float32),
        np.zeros((frames, 2, 3), np.float32),
        np.zeros((2, 3), np.float32),
        np.zeros((frames, 2), np.float32),
        [np.ones((1, 1, 2, 2), np.float32)],
    )


def sampler_of(
    noise: Iterable[np.ndarray],
    frames: int,
    steps: int,
    constants: SamplerConstants = CONSTANTS,
    spool_directory: Path | None = None,
) -> ClipSampler:
    plan = plan_denoising(frames, published_steps(steps, constants), constants)
    return ClipSampler(noise, condition(frames), plan, constants, spool_directory)


def denoise(noise: np.ndarray, unet: LinearUNet, steps: int, calls_at_once: int = 1) -> np.ndarray:
    sampler = sampler_of(noise, len(noise), steps)
    denoise_together([sampler], unet, calls_at_once)
    return np.asarray(sampler.latents)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 70))
def test_a_frame_does_not_depend_on_its_windows(frames: int) -> None:
    # A UNet that treats frames alike gives every frame the same path, however often it is covered.
    noise = np.ones((frames, 4, 2, 2), np.float32)
    latents = denoise(noise, LinearUNet(), 3)
    np.testing.assert_allclose(latents, np.broadcast_to(latents[:1], latents.shape), rtol=1e-5)


class BranchUNet(LinearUNet):
    """Answers with numbers that say which branch asked."""

    def __init__(self) -> None:
        self.branches: list[int] = []

    def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> dict[str, np.ndarray]:
        (branch,) = tags["branches"]
        self.branches.append(branch)
        rows = ("sample", "image_embedding", "audio_tokens", "added_time_ids")
        assert all(len(inputs[name]) == 1 for name in rows)
        return {"prediction": inputs["sample"][:, :, :4] * np.float32(0.1) * np.float32(1 + branch) ** 2}


@pytest.mark.parametrize(
    "image,audio,branches",
    [(2.0, 7.5, [0, 1, 2]), (1.0, 7.5, [1, 2]), (3.0, 3.0, [0, 2]), (1.0, 1.0, [2]), (0.0, 0.0, [0])],
)
def test_branches_without_weight_are_not_run(image: float, audio: float, branches: list[int]) -> None:
    constants = replace(CONSTANTS, image_guidance=(image, image), audio_guidance=(audio, audio))
    noise, unet = draw_noise(0, 4, 4, 2, 2), BranchUNet()
    sampler = sampler_of(noise, 4, 1, constants)
    expected = 0.1 * (1 + image * (4 - 1) + audio * (9 - 4))
    sigmas = karras_sigmas(1, constants)
    initial = np.asarray(sampler.latents)
    prediction = initial * input_scale(float(sigmas[0])) * np.float32(expected)
    stepped = euler_step(initial, prediction, float(sigmas[0]), float(sigmas[1]))
    denoise_together([sampler], unet)
    np.testing.assert_allclose(sampler.latents, stepped, rtol=1e-4, atol=1e-3)
    assert unet.branches == branches


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(BundleError, match="not finite at step 1 of 2"):
        denoise(np.ones((3, 4, 2, 2), np.float32), BrokenUNet(), 2)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_clips_together_are_each_as_alone(clips: list[tuple[int, int]], calls_at_once: int) -> None:
    noises = [draw_noise(index, frames, 4, 2, 2) for index, (frames, _) in enumerate(clips)]
    samplers = [sampler_of(noise, len(noise), steps) for noise, (_, steps) in zip(noises, clips, strict=True)]
    advanced: list[None] = []
    expected_calls = sum(sampler.plan.window_count for sampler in samplers)
    denoise_together(samplers, LinearUNet(), calls_at_once, lambda: advanced.append(None))
    assert len(advanced) == expected_calls
    for sampler, noise, (_, steps) in zip(samplers, noises, clips, strict=True):
        np.testing.assert_array_equal(sampler.latents, denoise(noise, LinearUNet(), steps))


@pytest.mark.parametrize("frames", [1, 7, 24, 53])
@pytest.mark.parametrize("calls_at_once", [1, 3])
def test_latents_on_disk_are_those_in_memory(frames: int, calls_at_once: int, monkeypatch, tmp_path) -> None:
    noise, unet = draw_noise(1, frames, 4, 2, 2), LinearUNet()
    expected = denoise(noise, unet, 3)

    def on_disk(*arguments: Any, **options: Any) -> ArraySpool:
        return ArraySpool(*arguments, memory_limit_bytes=0, **options)

    monkeypatch.setattr("sonic.diffusion.frame_means.ArraySpool", on_disk)
    sampler = sampler_of(iter(noise), frames, 3, spool_directory=tmp_path)
    denoise_together([sampler], unet, calls_at_once)
    assert sampler.latents.on_disk
    np.testing.assert_array_equal(sampler.latents, expected)


def test_frames_are_the_mean_of_their_windows() -> None:
    # Five windows' worth of a UNet that answers with the window's number: by hand, frame by frame.
    class NumberingUNet(LinearUNet):
        def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> dict[str, np.ndarray]:
            return {"prediction": np.full_like(inputs["sample"][:, :, :4], tags["window"])}

    noise = draw_noise(0, 53, 4, 2, 2)
    sampler = sampler_of(noise, 53, 1)
    initial, sigmas = np.asarray(sampler.latents), karras_sigmas(1, CONSTANTS)
    denoise_together([sampler], NumberingUNet())
    holders = [[n for n, window in enumerate(step_windows(53, 0, CONSTANTS)) if frame in window]
               for frame in range(53)]  # fmt: skip
    assert {len(numbers) for numbers in holders} == {1, 2}
    for frame, numbers in enumerate(holders):
        stepped = [
            euler_step(initial[frame], np.full_like(initial[frame], n), float(sigmas[0]), float(sigmas[1]))
            for n in numbers
        ]
        np.testing.assert_allclose(sampler.latents[frame], np.mean(stepped, axis=0), rtol=1e-4, atol=1e-2)


def test_noise_starts_alike_for_longer_clips() -> None:
    short, long = draw_noise(5, 3, 4, 2, 2), draw_noise(5, 9, 4, 2, 2)
    np.testing.assert_array_equal(short, long[:3])
    assert not np.array_equal(short, draw_noise(6, 3, 4, 2, 2))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 5))
def test_sliding_windows_equal_slices(pieces: list[int], window: int, stride: int) -> None:
    total = sum(pieces)
    padding = (3, window)
    count = (total + stride - 1) // stride
    states = np.arange(total, dtype=np.float32)[:, None] + 1
    padded = np.concatenate([np.zeros((3, 1)), states, np.zeros((window, 1))])
    windows = SlidingWindows(padding, window, stride, count)
    found = [windows.push(part) for part in np.split(states, np.cumsum(pieces)[:-1])]
    found.append(windows.finish())
    expected = [padded[i * stride : i * stride + window] for i in range(count)]
    np.testing.assert_array_equal(np.concatenate(found), np.stack(expected))


@given(st.integers(1, 9), st.integers(1, 30))
def test_hold_last_gives_the_count(frames: int, count: int) -> None:
    shown = list(hold_last(iter(range(frames)), count))  # type: ignore[arg-type]
    assert shown == [min(i, frames - 1) for i in range(count)]


def test_interpolation_puts_one_frame_between_two() -> None:
    class Mean(LinearUNet):
        def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> dict[str, np.ndarray]:
            return {"middle": (inputs["frame_0"] + inputs["frame_1"]) / 2}

    frames = [np.full((3, 2, 2), value, np.float32) for value in (0.0, 0.5, 1.0)]
    with ThreadPoolExecutor(1) as pool:
        values = [frame.flat[0] for frame in interpolate(frames, Mean(), pool)]
    assert values == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_quantize_truncates() -> None:
    frame = np.array([0.0, 0.999, 1.0], np.float32).reshape(3, 1, 1)
    np.testing.assert_array_equal(quantize(frame), [[[0, 254, 255]]])
