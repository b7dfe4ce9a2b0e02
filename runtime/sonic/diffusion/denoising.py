"""Denoising clips, several at the same time: which calls of the UNet run when."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice

import numpy as np

from sonic.diffusion.sampler import ClipSampler
from sonic.engines.base import Session


def denoise_together(
    samplers: Sequence[ClipSampler],
    unet: Session,
    calls_at_once: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Take every clip through all its steps.

    The calls of one step are independent across all windows and clips: `calls_at_once` of them run at
    the same time. Where fewer are left, those windows of the next step start whose frames are done. Each is
    computed as it would be alone, so that a clip's bytes do not depend on which other clips are denoised
    with it.

    Args:
        samplers: the clips, changed in place.
        unet: the open UNet.
        calls_at_once: number of threads that call it.
        advance: called after every window of every step.

    Raises:
        BundleError: the UNet returned values that are not finite.
    """
    with ThreadPoolExecutor(calls_at_once) as pool:
        running = deque(_RunningClip(sampler, unet, pool) for sampler in samplers if not sampler.finished)
        try:
            for clip in running:
                clip.submit_step()
            while running:
                clip = running.popleft()
                for _ in range(len(clip.sampler.current.windows)):
                    clip.finish_window()
                    advance()
                    if calls_at_once > 1:
                        # Twice as many as run, so that none waits while this thread finishes a window.
                        clip.submit_early(_missing_calls((clip, *running), 2 * calls_at_once))
                clip.sampler.finish_step()
                if not clip.sampler.finished:
                    clip.submit_step()
                    running.append(clip)
        except BaseException:  # an interrupt too: cancel the calls that have not started
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _missing_calls(clips: Iterable[_RunningClip], wanted: int) -> int:
    """How many calls have to be submitted so that `wanted` are not done."""
    left = chain.from_iterable(clip.calls_left for clip in clips)
    return wanted - sum(1 for _ in islice(left, wanted))


class _RunningClip:
    """The calls of one clip that were submitted, by step and window."""

    def __init__(self, sampler: ClipSampler, unet: Session, pool: ThreadPoolExecutor) -> None:
        self.sampler = sampler
        self._unet, self._pool = unet, pool
        self._calls: dict[tuple[int, int], dict[int, Future[np.ndarray]]] = {}
        self._window = 0

    @property
    def calls_left(self) -> Iterator[Future[np.ndarray]]:
        """The calls that are not done, from the last submitted one."""
        submitted = (call for calls in reversed(self._calls.values()) for call in calls.values())
        return (call for call in submitted if not call.done())

    def submit_step(self) -> None:
        """Submit the calls of the current step, but for those that were."""
        self._window = 0
        for window in range(len(self.sampler.current.windows)):
            if (self.sampler.step, window) not in self._calls:
                self._submit(self.sampler.step, window)

    def submit_early(self, missing: int) -> None:
        """Submit windows of the next step that are ready, until no calls are missing."""
        step = self.sampler.step + 1
        for window in self.sampler.early_windows if missing > 0 else ():
            if missing <= 0:
                return
            if (step, window) not in self._calls:
                # Read here: the current latents are replaced by those once the step is finished.
                latents = self.sampler.early_latents(self.sampler.plan.steps[step].windows[window])
                missing -= self._submit(step, window, latents)

    def _submit(self, step: int, window: int, latents: np.ndarray | None = None) -> int:
        branches = self.sampler.plan.steps[step].branches
        self._calls[step, window] = {
            branch: self._pool.submit(self.sampler.predict, self._unet, step, window, branch, latents)
            for branch in branches
        }
        return len(branches)

    def finish_window(self) -> None:
        """Wait for the next window of the current step, and finish it; its predictions are freed."""
        calls = self._calls.pop((self.sampler.step, self._window))
        indices = self.sampler.current.windows[self._window]
        self.sampler.finish_window(indices, {branch: call.result() for branch, call in calls.items()})
        self._window += 1
