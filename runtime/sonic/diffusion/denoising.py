"""Denoising clips, several at the same time: which calls of the UNet run when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np

from sonic.diffusion.sampler import ClipSampler
from sonic.engines.base import Session


def denoise_together(
    samplers: Sequence[ClipSampler],
    unet: Session,
    calls_at_once: int = 1,
    advance: Callable[[], None] = lambda: None,
    finished: Callable[[int], None] = lambda place: None,
) -> None:
    """Take every clip through all its steps, the first one first.

    The calls of one step are independent across all windows and clips: `calls_at_once` of them run at
    the same time. Where a clip has fewer left, those windows of its next step start whose frames are done,
    and then calls of the clips after it. Each is computed as it would be alone, so that the bytes do not
    depend on which other clips are denoised with it.

    Args:
        samplers: the clips, changed in place.
        unet: the open UNet.
        calls_at_once: number of threads that call it.
        advance: called after every window of every step.
        finished: called with the place of each clip in `samplers` after its last step.

    Raises:
        BundleError: the UNet returned values that are not finite.
    """
    with ThreadPoolExecutor(calls_at_once) as pool:
        running = [
            _RunningClip(place, sampler, unet, pool)
            for place, sampler in enumerate(samplers)
            if not sampler.finished
        ]
        try:
            while running:
                _submit_calls(running, calls_at_once)
                running[0].finish_window()
                advance()
                for clip in running:
                    while not clip.sampler.finished and clip.window_is_done:
                        clip.finish_window()
                        advance()
                for clip in running:
                    if clip.sampler.finished:
                        finished(clip.place)
                running = [clip for clip in running if not clip.sampler.finished]
        except BaseException:  # an interrupt too: cancel the calls that have not started
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _submit_calls(clips: Sequence[_RunningClip], calls_at_once: int) -> None:
    """Submit what the first clip needs next, and as many others as the cores have time for."""
    first, others = clips[0], clips[1:]
    first.submit_step()
    if calls_at_once == 1:
        return
    # Twice as many as run, so that none waits while this thread finishes a window.
    first.submit_early(2 * calls_at_once - first.count_left(2 * calls_at_once))
    # The last calls of a step rarely keep all cores busy: others of the same number do.
    left = sum(clip.count_left() for clip in clips)
    needed = -(-first.count_left() // calls_at_once) * calls_at_once
    for clip in others:
        if left >= needed:
            return
        left += clip.submit_step(needed - left)


class _RunningClip:
    """The calls of one clip that were submitted, by step and window."""

    def __init__(self, place: int, sampler: ClipSampler, unet: Session, pool: ThreadPoolExecutor) -> None:
        self.place, self.sampler = place, sampler
        self._unet, self._pool = unet, pool
        self._calls: dict[tuple[int, int], dict[int, Future[np.ndarray]]] = {}
        self._window = 0

    def count_left(self, most: int | None = None) -> int:
        """How many of the submitted calls are not done; at most `most`."""
        # The last ones first: those that are done are at the other end.
        submitted = (call for calls in reversed(self._calls.values()) for call in calls.values())
        return sum(1 for _ in islice((call for call in submitted if not call.done()), most))

    @property
    def window_is_done(self) -> bool:
        """Whether :meth:`finish_window` would not wait."""
        calls = self._calls.get((self.sampler.step, self._window), {})
        whole = len(calls) == len(self.sampler.current.branches)
        return whole and all(call.done() for call in calls.values())

    def submit_step(self, most: int | None = None) -> int:
        """Submit the calls of the current step, but for those that were; returns their number.

        Args:
            most: submit no more than so many.
        """
        count = 0
        for window in range(self._window, len(self.sampler.current.windows)):
            left = None if most is None else most - count
            count += self._submit(self.sampler.step, window, most=left)
        return count

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

    def _submit(
        self, step: int, window: int, latents: np.ndarray | None = None, most: int | None = None
    ) -> int:
        """Submit the calls of a window that were not, at most so many; returns their number."""
        calls = self._calls.setdefault((step, window), {})
        missing = [branch for branch in self.sampler.plan.steps[step].branches if branch not in calls]
        for branch in missing[:most]:
            calls[branch] = self._pool.submit(self.sampler.predict, self._unet, step, window, branch, latents)
        return len(missing[:most])

    def finish_window(self) -> None:
        """Wait for the next window of the current step, and finish it; its predictions are freed.

        After the last window, the step is finished too.
        """
        calls = self._calls.pop((self.sampler.step, self._window))
        indices = self.sampler.current.windows[self._window]
        self.sampler.finish_window(indices, {branch: call.result() for branch, call in calls.items()})
        self._window += 1
        if self._window == len(self.sampler.current.windows):
            self.sampler.finish_step()
            self._window = 0
