"""A loaded bundle and the whole way from a portrait and a recording to a video.

model = load_model("sonic-base")
video = model.generate(image="portrait.jpg", audio="speech.wav", inference_steps=25)
save_video(video, "output.mp4")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sonic.bundle.constants import Constants
from sonic.bundle.manifest import Manifest
from sonic.bundle.store import find_bundle, open_bundle
from sonic.engines.base import Engine, Observer
from sonic.engines.registry import make_engine
from sonic.engines.shared import SharedSessions
from sonic.errors import InputError, SonicError
from sonic.generation import ClipRequest, Generation, PathLike, denoise_clips
from sonic.media.video import Video, VideoStream
from sonic.options import BALANCED, GenerationOptions, RunOptions
from sonic.progress import NoProgress, Progress, default_progress


def load_model(
    name: PathLike,
    *,
    threads: int | None = None,
    memory: str = "balanced",
    bfloat16: bool = False,
    check_digests: bool = True,
) -> SonicModel:
    """Load a bundle by path, or by name from ``$SONIC_HOME``, ``./bundles`` or the user's data folder.

    Args:
        name: a bundle's name or path.
        threads: threads for one operator; None lets the engine choose.
        memory: "low" for machines with little, "fast" for small models and for many cores, "balanced"
            between them; see :class:`sonic.options.RunOptions`.
        bfloat16: multiply float32 matrices in bfloat16, on aarch64 processors that can (Graviton3 and later).
        check_digests: compare every file with the manifest's sha256.

    Raises:
        BundleError: there is no such bundle, or its files are missing, changed or too many.
        InputError: `memory`, `threads` or `bfloat16` cannot be used.
    """
    run = RunOptions(memory, threads, bfloat16)
    bundle = open_bundle(find_bundle(name), check_digests=check_digests)
    return SonicModel(make_engine(bundle, run), run)


_FILES = ("image", "audio", "noise", "dump")
# Arguments of `SonicModel.generate`, whose names are published, and the options that they set.
_OPTIONS = {
    "duration": "duration_seconds",
    "min_resolution": "resolution_pixels",
    "inference_steps": "steps",
} | {
    name: name
    for name in (
        "seed", "dynamic_scale", "motion_scale", "expand_ratio", "lip_sync_correction", "smooth_motion",
    )
}  # fmt: skip


@dataclass(frozen=True)
class ClipResult:
    """What became of one clip of :meth:`SonicModel.generate_many`: a video, or why there is none."""

    index: int
    video: Video | None
    error: SonicError | None


class SonicModel:
    """Generates videos with one bundle; make it with :func:`load_model`."""

    def __init__(self, engine: Engine, run: RunOptions = BALANCED) -> None:
        self.engine = engine
        self.run = run

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.engine.bundle.manifest

    @property
    def constants(self) -> Constants:
        """The bundle's numbers."""
        return self.manifest.constants

    def generate(
        self,
        image: PathLike,
        audio: PathLike,
        *,
        duration: float | None = None,
        min_resolution: int | None = None,
        inference_steps: int | None = None,
        seed: int | None = None,
        dynamic_scale: float = 1.0,
        motion_scale: float = 1.0,
        expand_ratio: float | None = None,
        lip_sync_correction: bool = False,
        smooth_motion: bool = False,
        noise: PathLike | np.ndarray | None = None,
        dump: PathLike | None = None,
        progress: Progress | None = None,
        observer: Observer | None = None,
        spool_directory: PathLike | None = None,
    ) -> Video:
        """Generate a talking-head video; the same inputs and seed give the same bytes.

        Args:
            image: portrait; EXIF orientation is applied, transparency is dropped.
            audio: speech, any format FFmpeg decodes.
            duration: seconds to use of the recording; all of it by default.
            min_resolution: short side of the video in pixels (each side becomes a multiple of 64);
                the bundle's by default. A portrait whose short side is under 512 pixels is not
                enlarged beyond 512.
            inference_steps: denoising steps; the bundle's by default (25).
            seed: of the initial noise; the bundle's by default.
            dynamic_scale: multiplies both motion buckets, ``b' = dynamic_scale * b``.
            motion_scale: multiplies the expression bucket on top,
                ``b'[1] = motion_scale * dynamic_scale * b[1]``.
            expand_ratio: crop to the face box expanded by this many box sizes on each side, made
                square; without it the whole picture is used.
            lip_sync_correction: measure the offset between mouth motion and speech energy and shift
                the sound by at most two frames (formula: :func:`sonic.media.lipsync.sound_offset_frames`).
            smooth_motion: filter out jitter over time (formula:
                :class:`sonic.media.smoothing.TemporalSmoother`).
            noise: initial noise, a ``.npy`` file or array, float32 (frames, 4, H/8, W/8).
            dump: folder for ``audio_tokens.npy`` (frames, tokens, width), ``uncond_tokens.npy``
                (tokens, width), ``buckets.npy`` (frames, 2; before `dynamic_scale`), ``latents.npy``
                (frames, 4, H/8, W/8) and ``frames.npy`` (frames, H, W, 3 uint8; before interpolation).
            progress: shows the stages; bars on a terminal by default.
            observer: called with the inputs and outputs of every submodel's run.
            spool_directory: where long results go while they are made; the system's temporary folder
                by default.

        Returns:
            (frames, H, W, 3) uint8 at 25 frames a second, as long as the sound, with the sound
            attached; on disk when long.

        Raises:
            InputError: an input or option that cannot be used.
            OutputError: the dump or the spool cannot be written.
            BundleError: the bundle cannot be run.
        """
        request = self._request(
            {
                "image": image, "audio": audio, "noise": noise, "dump": dump, "duration": duration,
                "min_resolution": min_resolution, "inference_steps": inference_steps, "seed": seed,
                "dynamic_scale": dynamic_scale, "motion_scale": motion_scale,
                "expand_ratio": expand_ratio, "lip_sync_correction": lip_sync_correction,
                "smooth_motion": smooth_motion,
            }
        )  # fmt: skip
        return self.generate_request(request, progress or default_progress(), observer, spool_directory)

    def generate_request(
        self,
        request: ClipRequest,
        progress: Progress,
        observer: Observer | None = None,
        spool_directory: PathLike | None = None,
    ) -> Video:
        """Generate what a request asks for; returns and raises as :meth:`generate`."""
        with self._denoised(request, progress, observer, spool_directory) as clip:
            return clip.render()

    @contextmanager
    def stream(
        self,
        *,
        progress: Progress | None = None,
        observer: Observer | None = None,
        spool_directory: PathLike | None = None,
        **arguments: Any,
    ) -> Iterator[VideoStream]:
        """Generate a video and encode it while it is decoded, without keeping its frames.

            with model.stream(image="portrait.jpg", audio="speech.wav") as video:
                save_video(video, "output.mp4")

        Args:
            progress, observer, spool_directory: as for :meth:`generate`.
            arguments: the others of :meth:`generate` by name.

        Yields:
            What :meth:`generate` returns, frame by frame. With `lip_sync_correction`, which has to see
            every frame before the sound is known, all are made first and kept, on disk when long.

        Raises:
            InputError, OutputError, BundleError: as :meth:`generate`.
        """
        request, progress = self._request(arguments), progress or default_progress()
        with self._denoised(request, progress, observer, spool_directory) as clip, clip.stream() as video:
            yield video

    @contextmanager
    def _denoised(
        self,
        request: ClipRequest,
        progress: Progress,
        observer: Observer | None,
        spool_directory: PathLike | None,
    ) -> Iterator[Generation]:
        spool = None if spool_directory is None else Path(spool_directory)
        with self._observed(observer), Generation(self.engine, request, progress, spool, self.run) as clip:
            clip.prepare()
            denoise_clips(self.engine, [clip], progress, self._calls_at_once())
            yield clip

    def generate_many(
        self,
        clips: Iterable[Mapping[str, Any]],
        *,
        together: int = 4,
        progress: Progress | None = None,
        spool_directory: PathLike | None = None,
    ) -> Iterator[ClipResult]:
        """Generate several videos; each has the bytes that :meth:`generate` gives it.

        Clips are denoised in groups, and while one group is, the videos of the group before are
        decoded. A clip that cannot be generated does not stop the others.

        Args:
            clips: for each clip the arguments of :meth:`generate` by name, from `image` to `dump`.
            together: how many clips are denoised together; their latents are in memory.
            progress: shows the stages of preparing and denoising.
            spool_directory: as for :meth:`generate`.

        Yields:
            A result for every clip, in the order of `clips`.

        Raises:
            InputError: `together` is no positive number.
        """
        if together < 1:
            raise InputError(f"together is {together!r}, but should be a number of clips of at least 1")
        progress = progress or NoProgress()
        spool = None if spool_directory is None else Path(spool_directory)
        waiting: list[Future[Video]] = []
        first, numbered = 0, iter(clips)
        shared = SharedSessions(self.engine)
        with ThreadPoolExecutor(self._calls_at_once()) as renderer:
            while group := list(islice(numbered, together)):
                denoised = self._denoise_group(group, shared, progress, spool)
                yield from _results(first - len(waiting), waiting)
                waiting = [renderer.submit(_render, clip) for clip in denoised]
                first += len(group)
            yield from _results(first - len(waiting), waiting)

    def _denoise_group(
        self,
        group: list[Mapping[str, Any]],
        shared: SharedSessions,
        progress: Progress,
        spool: Path | None,
    ) -> list[Generation | SonicError]:
        """Every clip denoised, or what was wrong with it."""
        clips: list[Generation | SonicError] = []
        for arguments in group:
            try:
                request = self._request(arguments)
                clip = Generation(shared, request, progress, spool, self.run, len(group))
                with clip.leave_open():
                    clip.prepare()
                clips.append(clip)
            except SonicError as error:
                clips.append(error)
        shared.close()  # the UNet needs the memory
        prepared = [clip for clip in clips if isinstance(clip, Generation)]
        try:
            if prepared:
                denoise_clips(self.engine, prepared, progress, self._calls_at_once())
        except BaseException as error:
            for clip in prepared:
                clip.__exit__(type(error), error, error.__traceback__)
            if not isinstance(error, SonicError):
                raise
            # The bundle's fault, whatever the clip.
            return [error if isinstance(clip, Generation) else clip for clip in clips]
        return clips

    def _request(self, arguments: Mapping[str, Any]) -> ClipRequest:
        """The arguments of :meth:`generate` by name, checked and complete."""
        known = (*_FILES, *_OPTIONS)
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            raise InputError(f"'{unknown[0]}' is no option of a clip; it should be one of {', '.join(known)}")
        missing = [name for name in ("image", "audio") if name not in arguments]
        if missing:
            raise InputError(f"a clip needs '{missing[0]}', the path of a file")
        files = {name: value for name, value in arguments.items() if name in _FILES}
        options = {_OPTIONS[name]: value for name, value in arguments.items() if name in _OPTIONS}
        return ClipRequest(options=GenerationOptions(**options).resolved(self.constants), **files)

    def _calls_at_once(self) -> int:
        """An observer sees one call after another."""
        return 1 if self.engine.observer is not None else self.run.calls_at_once

    @contextmanager
    def _observed(self, observer: Observer | None) -> Iterator[None]:
        before, self.engine.observer = self.engine.observer, observer or self.engine.observer
        try:
            yield
        finally:
            self.engine.observer = before


def _render(clip: Generation | SonicError) -> Video:
    if isinstance(clip, SonicError):
        raise clip
    with clip:
        return clip.render(NoProgress())  # a terminal shows one bar at a time: that of the denoising


def _results(first: int, futures: list[Future[Video]]) -> Iterator[ClipResult]:
    for index, future in enumerate(futures, first):
        try:
            yield ClipResult(index, future.result(), None)
        except SonicError as error:
            yield ClipResult(index, None, error)


__all__ = ["ClipResult", "SonicModel", "load_model"]
