"""Several clips, denoised in groups; each is decoded and given back as soon as it is denoised.

    for result in generate_in_groups(engine, requests, run, together=4):
        ...

One thread prepares and denoises a group after the other, and another one decodes what is denoised. Within a
group the first clip goes first, and the others fill the cores that it leaves idle, so that clips end
one after another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from sonic.engines.base import Engine
from sonic.engines.shared import SharedSessions
from sonic.engines.watched import WatchedEngine
from sonic.errors import GenerationCancelled, SonicError
from sonic.execution import choose_execution
from sonic.generation import Generation, denoise_clips
from sonic.media.video import Video
from sonic.options import IntakeLimits, RunOptions
from sonic.prepared_clip import ClipRequest, PreparedClip
from sonic.progress import NoProgress, Progress, announce
from sonic.resume import ClipCheckpoint

#: Gives a clip's request, or raises a `SonicError`.
MakeRequest = Callable[[], ClipRequest]
#: While one group is denoised, the one before may still be decoded.
_GROUPS_AT_ONCE = 2


@dataclass(frozen=True)
class ClipResult:
    """The result for one clip of :meth:`SonicModel.generate_many`: a video, or the error instead of one.

    Attributes:
        index: the clip's place in `clips`.
        video: the video, or None.
        error: why there is none, or None.
        checkpoint: of a video whose clip has one: still there, until its `remove()` is called; a context
            manager, at whose end others may generate the clip.
    """

    index: int
    video: Video | None
    error: SonicError | None
    checkpoint: ClipCheckpoint | None = None


@dataclass(frozen=True)
class _Clip:
    """A clip that was asked for, and what will become of it."""

    make_request: MakeRequest
    ended: Future[tuple[Video, ClipCheckpoint]] = field(default_factory=Future)


@dataclass(frozen=True)
class _OpenClip:
    """A prepared clip, the resources to close once it is decoded, and its checkpoint."""

    asked: _Clip
    prepared: PreparedClip
    resources: ExitStack
    checkpoint: ClipCheckpoint

    def close(self, error: BaseException) -> None:
        """Give up what an error has stopped."""
        try:
            self.resources.__exit__(type(error), error, error.__traceback__)
        finally:
            self.checkpoint.__exit__(type(error), error, error.__traceback__)


def generate_in_groups(
    engine: Engine,
    requests: Iterable[MakeRequest],
    run: RunOptions,
    together: int,
    progress: Progress,
    spool_directory: Path | None = None,
    cancel: threading.Event | None = None,
    limits: IntakeLimits | None = None,
) -> Generator[ClipResult, None, None]:
    """Generate clips; the arguments and results are those of :meth:`SonicModel.generate_many`.

    Args:
        engine: runs the submodels.
        requests: what to generate.
        run, together, progress, spool_directory, cancel: as there.
        limits: what portraits and recordings may be; the environment's by default.
    """
    stop = _EitherEvent(cancel)
    waiting: deque[_Clip] = deque()
    with ThreadPoolExecutor(1) as denoiser, ThreadPoolExecutor(1) as renderer:
        groups = _Groups(
            WatchedEngine(engine, cancel=stop), run, progress, spool_directory, stop, renderer, limits
        )
        try:
            numbered = iter(requests)
            index = 0
            while True:
                # The next group waits for what was done before: its frames take up disk space.
                while len(waiting) <= (_GROUPS_AT_ONCE - 1) * together:
                    group = [_Clip(request) for request in islice(numbered, together)]
                    if not group:
                        break
                    denoising = denoiser.submit(groups.denoise, group)
                    denoising.add_done_callback(partial(_end_all, group))
                    waiting.extend(group)
                if not waiting:
                    return
                yield _result(index, waiting[0].ended)
                waiting.popleft()
                index += 1
        except BaseException as error:  # an interrupt too
            stop.set()
            denoiser.shutdown(wait=True, cancel_futures=True)
            renderer.shutdown(wait=True)  # which closes what waits to be decoded
            for note in _notes_of(waiting):
                error.add_note(note)
            raise


class _Groups:
    """Prepares and denoises groups of clips with shared sessions."""

    def __init__(
        self,
        engine: Engine,
        run: RunOptions,
        progress: Progress,
        spool_directory: Path | None,
        cancel: threading.Event,
        renderer: ThreadPoolExecutor,
        limits: IntakeLimits | None,
    ) -> None:
        self._engine, self._run, self._limits = engine, run, limits
        self._shared = SharedSessions(engine)
        self._progress, self._spool_directory = progress, spool_directory
        self._cancel, self._renderer = cancel, renderer

    def denoise(self, group: Sequence[_Clip]) -> None:
        """Denoise a group, and have each clip decoded once it is denoised.

        A clip that cannot be prepared ends with its error. If the others cannot be denoised together, each is
        tried alone, so that the one that is to blame fails alone.
        """
        clips: list[_OpenClip] = []
        try:
            for asked in group:
                try:
                    clips.append(self._prepare(asked, len(group)))
                except Exception as error:
                    asked.ended.set_exception(_as_sonic_error(error))
            self._shared.close()  # frees their memory for the UNet
            if clips:
                self._denoise(clips)
        except BaseException as error:
            left = [clip for clip in clips if not (clip.asked.ended.running() or clip.asked.ended.done())]
            for clip in left:
                clip.close(error)
            if len(left) > 1 and isinstance(error, Exception) and not self._cancel.is_set():
                for clip in left:
                    self.denoise([clip.asked])
            else:
                for clip in left:
                    clip.asked.ended.set_exception(_as_sonic_error(error))

    def _denoise(self, clips: Sequence[_OpenClip]) -> None:
        """Denoise clips with the calls at once that fit all of them together."""
        plans = [clip.prepared.plan for clip in clips]
        manifest = self._engine.bundle.manifest
        execution = choose_execution(manifest, plans, self._run, in_batch=True)
        announce(self._progress, f"execution: {execution}")

        def render(index: int) -> None:
            clip = clips[index]
            clip.asked.ended.set_running_or_notify_cancel()  # from here on, decoding owns its resources
            self._renderer.submit(_render, clip)

        prepared = [clip.prepared for clip in clips]
        denoise_clips(self._engine, prepared, self._progress, execution, render)

    def _prepare(self, asked: _Clip, together: int) -> _OpenClip:
        request = asked.make_request()
        with ExitStack() as until_prepared:
            checkpoint = until_prepared.enter_context(ClipCheckpoint(request.checkpoint, request.resume))
            generation = Generation(
                self._shared,
                request,
                self._progress,
                self._spool_directory,
                self._run,
                together,
                checkpoint=checkpoint,
                in_batch=True,
                limits=self._limits,
            )
            resources = until_prepared.enter_context(ExitStack())
            resources.enter_context(generation)
            clip = generation.prepare()
            until_prepared.pop_all()
        return _OpenClip(asked, clip, resources, checkpoint)


class _EitherEvent(threading.Event):
    """An event that is also set if another one is."""

    def __init__(self, other: threading.Event | None) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or (self._other is not None and self._other.is_set())


def _render(clip: _OpenClip) -> None:
    try:
        with clip.resources:
            # A terminal shows one bar at a time: that of denoising.
            video = clip.prepared.render(NoProgress())
    except BaseException as error:
        clip.checkpoint.__exit__(type(error), error, error.__traceback__)
        clip.asked.ended.set_exception(_as_sonic_error(error))
    else:
        clip.asked.ended.set_result((video, clip.checkpoint))


def _result(index: int, ended: Future[tuple[Video, ClipCheckpoint]]) -> ClipResult:
    try:
        video, checkpoint = ended.result()
    except SonicError as error:
        return ClipResult(index, None, error)
    return ClipResult(index, video, None, checkpoint)


def _end_all(group: Sequence[_Clip], denoising: Future[None]) -> None:
    """Make sure that nobody waits for a clip whose group ended in a way that nobody foresaw."""
    error = None if denoising.cancelled() else denoising.exception()
    if error is not None:
        for clip in group:
            if not (clip.ended.running() or clip.ended.done()):
                clip.ended.set_exception(_as_sonic_error(error))


def _as_sonic_error(error: BaseException) -> BaseException:
    """An error of one clip, which must not end the others: errors that nobody foresaw become sentences."""
    if isinstance(error, SonicError) or not isinstance(error, Exception):
        return error
    if isinstance(error, MemoryError):
        return SonicError("there is not enough memory for this clip; choose a lower resolution")
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    foreseen = SonicError(f"the clip cannot be generated ({reason})")
    foreseen.__cause__ = error
    return foreseen


def _notes_of(clips: Iterable[_Clip]) -> Iterator[str]:
    """What the checkpoints of clips that were stopped say."""
    for clip in clips:
        if clip.ended.done() and isinstance(error := clip.ended.exception(), GenerationCancelled):
            yield from getattr(error, "__notes__", ())
