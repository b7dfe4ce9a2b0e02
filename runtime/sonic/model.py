"""Loading a bundle, and generating videos from a portrait and a recording with it.

Example:

    model = load_model("sonic-base")
    video = model.generate(image="portrait.jpg", audio="speech.wav", inference_steps=25)
    save_video(video, "output.mp4")
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from sonic.bundle.constants import Constants
from sonic.bundle.manifest import Manifest
from sonic.bundle.store import find_bundle, open_bundle
from sonic.bundle.trust import DEFAULT_TRUST, TrustOptions
from sonic.clip_groups import ClipResult, generate_in_groups
from sonic.engines.base import Engine
from sonic.engines.registry import make_engine
from sonic.engines.watched import Observer, WatchedEngine
from sonic.errors import InputError
from sonic.generation import Generation, denoise_clips
from sonic.media.video import Video, VideoStream
from sonic.options import AUTOMATIC, BatchOptions, GenerationOptions, IntakeLimits, RunOptions
from sonic.prepared_clip import ClipRequest, PreparedClip
from sonic.progress import NoProgress, Progress, default_progress
from sonic.resume import ClipCheckpoint
from sonic.schema import Option, PathLike, accepts, definitions, method_accepts, narrowed


@dataclass(frozen=True)
class LoadArguments(RunOptions, TrustOptions):
    """The arguments of :func:`load_model`."""

    name: PathLike
    _: KW_ONLY
    limits: IntakeLimits | None = None


@accepts(LoadArguments)
def load_model(arguments: LoadArguments) -> SonicModel:
    """Load a bundle by path, or by name from ``$SONIC_HOME``, ``./bundles`` or the user's data folder.

    Args:
        name: a bundle's name or path.
        limits: what portraits and recordings may be, and what decoding one may take; by default, what
            :meth:`sonic.options.IntakeLimits.from_environment` returns.
        (options)

    Raises:
        BundleError: there is no such bundle, a file is missing, changed or extra, it is not signed by whom
            it should be, or this machine cannot run the bundle.
        InputError: an option cannot be used.
    """
    run, trust = narrowed(arguments, RunOptions), narrowed(arguments, TrustOptions)
    return open_model(arguments.name, run, trust, arguments.limits)


def open_model(
    name: PathLike,
    run: RunOptions,
    trust: TrustOptions = DEFAULT_TRUST,
    limits: IntakeLimits | None = None,
) -> SonicModel:
    """As :func:`load_model`, with the options in objects."""
    bundle = open_bundle(find_bundle(name), trust)
    return SonicModel(make_engine(bundle, run), run, limits)


@dataclass(frozen=True)
class ClipArguments(GenerationOptions, BatchOptions):
    """The arguments of :meth:`SonicModel.generate`; the options are inherited with their definitions."""

    image: Annotated[PathLike, Option("Portrait (JPEG, PNG, WebP, ...)")]
    audio: Annotated[PathLike, Option("Speech (WAV, MP3, FLAC, M4A, ...)")]
    _: KW_ONLY
    noise: Annotated[
        PathLike | np.ndarray | None,
        Option("Initial noise, a .npy file or array, float32 (frames, 4, H/8, W/8)", default="the seed's"),
    ] = None
    dump: Annotated[PathLike | None, Option("Folder for intermediate results (.npy)", default="none")] = None
    checkpoint: PathLike | None = None
    progress: Progress | None = None
    observer: Observer | None = None
    cancel: threading.Event | None = None
    spool_directory: PathLike | None = None

    @property
    def spool(self) -> Path | None:
        """`spool_directory` as a path."""
        return None if self.spool_directory is None else Path(self.spool_directory)

    def request(self, manifest: Manifest) -> ClipRequest:
        """What to generate, with the bundle's defaults for options that were not given."""
        options = narrowed(self, GenerationOptions).resolved(manifest.constants, manifest.speeds.default)
        return ClipRequest(
            self.image,
            self.audio,
            options,
            self.noise,
            self.dump,
            checkpoint=self.checkpoint,
            resume=self.resume,
            scan=self.scan,
        )


class SonicModel:
    """Generates videos with one bundle; created by :func:`load_model`.

    It holds no per-clip state, so any number of threads may generate with one model at the same time, and
    each gets the same bytes as it would alone.
    """

    def __init__(
        self, engine: Engine, run: RunOptions = AUTOMATIC, limits: IntakeLimits | None = None
    ) -> None:
        self.engine = engine
        self.run = run
        self.limits = limits

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.engine.bundle.manifest

    @property
    def constants(self) -> Constants:
        """The bundle's constants."""
        return self.manifest.constants

    @method_accepts(ClipArguments)
    def generate(self, clip: ClipArguments) -> Video:
        """Generate a talking-head video; the same inputs and seed give the same bytes.

        The portrait's EXIF orientation is applied. A portrait whose short side is under 512 pixels is not
        enlarged beyond 512. With motion buckets b, the UNet is conditioned on ``dynamic_scale * b[0]`` and
        ``dynamic_scale * motion_scale * b[1]`` (expression). For the formulas of the two corrections, see
        :func:`sonic.media.lipsync.sound_offset_frames` and :class:`sonic.media.smoothing.TemporalSmoother`.

        Args:
            (options)
            checkpoint: a file that denoising writes every few seconds, in which a call that is stopped by
                whatever leaves how far it came: another one with the same arguments, of any process, goes on
                there and returns the same bytes. The file is removed when the video is there. Where an input,
                an option or the bundle changed, or the file is damaged, a warning says so, and the clip
                starts over; see :mod:`sonic.resume`.
            progress: shows the stages; bars on a terminal by default.
            observer: called with the inputs and outputs of every submodel call.
            cancel: once it is set, from any thread, the generation ends within one call of the UNet and
                leaves nothing behind but its checkpoint.
            spool_directory: folder of the temporary files that hold large results; the system's temporary
                folder by default.

        The dump holds ``audio_tokens.npy`` (frames, tokens, width), ``uncond_tokens.npy`` (tokens, width),
        ``buckets.npy`` (frames, 2; before `dynamic_scale`), ``latents.npy`` (frames, 4, H/8, W/8) and
        ``frames.npy`` (frames, H, W, 3 uint8; before interpolation).

        Returns:
            (frames, H, W, 3) uint8 at 25 frames per second, as long as the sound, with the sound
            attached; on disk when large.

        Raises:
            InputError: an input or option cannot be used.
            OutputError: the dump or the spool cannot be written, or another process uses the checkpoint.
            BundleError: the bundle cannot be run.
            GenerationCancelled: `cancel` was set.
        """
        progress = clip.progress or default_progress()
        return self.generate_request(
            clip.request(self.manifest), progress, clip.observer, clip.spool, clip.cancel
        )

    def generate_request(
        self,
        request: ClipRequest,
        progress: Progress,
        observer: Observer | None = None,
        spool_directory: Path | None = None,
        cancel: threading.Event | None = None,
    ) -> Video:
        """As :meth:`generate`, for a request."""
        with self._denoised(request, progress, observer, spool_directory, cancel) as clip:
            return clip.render(progress)

    @method_accepts(ClipArguments)
    def stream(self, clip: ClipArguments) -> AbstractContextManager[VideoStream]:
        """Generate a video and encode it while it is decoded, without keeping its frames.

            with model.stream("portrait.jpg", "speech.wav") as video:
                save_video(video, "output.mp4")

        Takes the arguments of :meth:`generate`.

        Yields:
            What :meth:`generate` returns, frame by frame. With `lip_sync_correction`, which needs every
            frame to determine the sound, all frames are computed first and kept, on disk when large.

        Raises:
            InputError, OutputError, BundleError, GenerationCancelled: as for :meth:`generate`.
        """
        return self.stream_clip(clip)

    @contextmanager
    def stream_clip(self, clip: ClipArguments) -> Iterator[VideoStream]:
        """As :meth:`stream`, with the arguments in an object."""
        request, progress = clip.request(self.manifest), clip.progress or default_progress()
        with (
            self._denoised(request, progress, clip.observer, clip.spool, clip.cancel) as denoised,
            denoised.stream(progress) as video,
        ):
            yield video

    @contextmanager
    def _denoised(
        self,
        request: ClipRequest,
        progress: Progress,
        observer: Observer | None,
        spool_directory: Path | None,
        cancel: threading.Event | None,
    ) -> Iterator[PreparedClip]:
        engine = WatchedEngine(self.engine, observer, cancel)
        # Observers may rely on seeing one call after another.
        one_by_one = observer is not None
        with ClipCheckpoint(request.checkpoint, request.resume) as checkpoint:
            with Generation(
                engine,
                request,
                progress,
                spool_directory,
                self.run,
                checkpoint=checkpoint,
                one_by_one=one_by_one,
                limits=self.limits,
            ) as generation:
                clip = generation.prepare()
                denoise_clips(engine, [clip], progress)
                yield clip
            checkpoint.remove()

    def generate_many(
        self,
        clips: Iterable[ClipArguments | Mapping[str, Any]],
        *,
        together: int = 4,
        progress: Progress | None = None,
        spool_directory: PathLike | None = None,
        cancel: threading.Event | None = None,
    ) -> Generator[ClipResult, None, None]:
        """Generate several videos, each with the same bytes as from :meth:`generate`.

        Clips are denoised in groups. The first of a group goes first, and the others fill the cores that it
        leaves idle; each is decoded while the next ones are denoised. A clip that cannot be generated does
        not stop the others.

        Args:
            clips: the arguments of :meth:`generate` for each clip, by name, from `image` to `checkpoint`.
            together: how many clips are denoised together; their latents are in memory.
            progress: shows the stages of preparing and denoising.
            spool_directory: as for :meth:`generate`.
            cancel: once it is set, all unfinished clips end within one call of the UNet, each with
                :class:`sonic.errors.GenerationCancelled` as its error.

        Yields:
            A result for every clip, in the order of `clips`. Where a clip has a checkpoint, that stays
            until the result's is removed, so that the video can be saved first.

        Raises:
            InputError: `together` is not a positive number.
        """
        if together < 1:
            raise InputError(f"together is {together!r}, but should be a number of clips of at least 1")
        manifest = self.manifest
        return generate_in_groups(
            self.engine,
            (lambda clip=clip: clip_arguments(clip).request(manifest) for clip in clips),  # type: ignore[misc]
            self.run,
            together,
            progress or NoProgress(),
            None if spool_directory is None else Path(spool_directory),
            cancel,
            self.limits,
        )


def clip_arguments(arguments: ClipArguments | Mapping[str, Any]) -> ClipArguments:
    """Check the arguments of :meth:`SonicModel.generate`, given by name.

    Raises:
        InputError: a name is unknown or missing, or a value cannot be used.
    """
    if isinstance(arguments, ClipArguments):
        return arguments
    known = [*(definition.field for definition in definitions(ClipArguments)), "checkpoint"]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise InputError(f"'{unknown[0]}' is no option of a clip; it should be one of {', '.join(known)}")
    for definition in definitions(ClipArguments):
        if definition.required and definition.field not in arguments:
            raise InputError(f"a clip needs '{definition.field}', the path of a file")
    return ClipArguments(**arguments)


__all__ = ["ClipArguments", "ClipResult", "SonicModel", "load_model"]
