"""Windows of a step that start before the previous step is finished."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.bundle.constants import SamplerConstants
from sonic.diffusion.denoising import denoise_together
from sonic.diffusion.noise import draw_noise
from sonic.diffusion.plan import plan_denoising
from sonic.diffusion.sampler import ClipCondition, ClipSampler
from sonic.diffusion.steps import published_steps
from sonic.engines.checked import NotFinite
from sonic.errors import BundleError

CONSTANTS = SamplerConstants(window_frames=5, window_shift_frames=2)
OVERLAPPING = SamplerConstants(window_frames=6, window_overlap_frames=2, window_shift_frames=3)


class MixingUNet:
    """Mixes the frames of a window, differently in every branch, and answers after a while."""

    def __init__(self, seed: int = 0) -> None:
        self._random, self._lock = random.Random(seed), threading.Lock()
        self.events: list[tuple[str, int, int]] = []

    def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> dict[str, np.ndarray]:
        with self._lock:
            self.events.append(("starts", tags["step"], tags["window"]))
            wait = self._random.random() / 2000
        time.sleep(wait)
        sample = inputs["sample"][:, :, :4]
        (branch,) = tags["branches"]
        weights = np.linspace(0.1, 0.9, sample.shape[1], dtype=np.float32)[:, None, None, None]
        mixed = (sample * weights).mean(axis=1, keepdims=True) + sample * np.float32(0.1 + 0.2 * branch)
        return {"prediction": mixed.astype(np.float32)}

    def __enter__(self) -> MixingUNet:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


def sampler_of(frames: int, constants: SamplerConstants, steps: int) -> ClipSampler:
    condition = ClipCondition(
        np.zeros((4, 2, 2), np.float32),
        np.zeros(3, np.float32),
        np.zeros((frames, 2, 3), np.float32),
        np.zeros((2, 3), np.float32),
        np.zeros((frames, 2), np.float32),
        [np.ones((1, 1, 2, 2), np.float32)],
    )
    plan = plan_denoising(frames, published_steps(steps, constants), constants)
    return ClipSampler(draw_noise(1, frames, 4, 2, 2), condition, plan, constants)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 33), st.integers(1, 4)), min_size=1, max_size=3),
    st.sampled_from([CONSTANTS, OVERLAPPING]),
    st.integers(2, 7),
    st.integers(0, 99),
)
def test_latents_do_not_depend_on_the_calls_at_once(
    clips: list[tuple[int, int]], constants: SamplerConstants, at_once: int, seed: int
) -> None:
    alone, together = ([sampler_of(frames, constants, steps) for frames, steps in clips] for _ in range(2))
    for sampler in alone:
        denoise_together([sampler], MixingUNet(), 1)
    unet, advanced = MixingUNet(seed), []
    denoise_together(together, unet, at_once, lambda: advanced.append(1))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.latents, other.latents)
    assert len(advanced) == sum(sampler.plan.window_count for sampler in together)
    # Each call is made once.
    assert len(unet.events) == sum(sampler.plan.call_count for sampler in together)


def test_one_call_at_a_time_follows_the_plan() -> None:
    sampler, unet = sampler_of(28, CONSTANTS, 3), MixingUNet()
    denoise_together([sampler], unet)
    windows = [(step, window) for step in range(3) for window in range(6)]
    assert [event[1:] for event in unet.events] == [pair for pair in windows for _ in range(3)]


def test_a_window_starts_early_where_a_thread_would_be_idle() -> None:
    """The last window of the first step only ends once a window of the second step runs beside it."""
    second_step_runs = threading.Event()

    class Waiting(MixingUNet):
        def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> dict[str, np.ndarray]:
            if tags["step"] == 1:
                second_step_runs.set()
            elif tags["window"] == 4:
                assert second_step_runs.wait(20), "no window of the next step was started"
            return super().run(inputs, **tags)

    constants = SamplerConstants(
        window_frames=5, window_shift_frames=2, image_guidance=(1.0, 1.0), audio_guidance=(1.0, 1.0)
    )  # one branch: five calls a step
    sampler, alone = (sampler_of(25, constants, 2) for _ in range(2))
    denoise_together([sampler], Waiting(), 2)
    denoise_together([alone], MixingUNet(), 1)
    np.testing.assert_array_equal(sampler.latents, alone.latents)


@settings(deadline=None)
@given(st.integers(1, 33), st.sampled_from([CONSTANTS, OVERLAPPING]))
def test_early_windows_are_those_whose_frames_are_done(frames: int, constants: SamplerConstants) -> None:
    sampler, unet = sampler_of(frames, constants, 2), MixingUNet()
    now, following = (list(step.windows) for step in sampler.plan.steps)
    for number, indices in enumerate(now):
        left = {int(frame) for window in now[number:] for frame in window}
        ready = [n for n, window in enumerate(following) if not left & set(window.tolist())]
        assert list(sampler.early_windows) == ready
        predictions = {branch: sampler.predict(unet, 0, number, branch) for branch in range(3)}
        sampler.finish_window(indices, predictions)
    early = [sampler.early_latents(window) for window in following]
    sampler.finish_step()
    for window, latents in zip(following, early, strict=True):
        np.testing.assert_array_equal(latents, sampler.latents[window])
    assert list(sampler.early_windows) == []


def test_an_early_window_is_checked_too() -> None:
    class Broken(MixingUNet):
        def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> dict[str, np.ndarray]:
            if tags["step"] == 1:
                raise NotFinite("as the engine says it")
            return super().run(inputs, **tags)

    with pytest.raises(BundleError, match="not finite at step 2 of 2"):
        denoise_together([sampler_of(25, CONSTANTS, 2)], Broken(), 3)
