"""One clip on its way: what was asked for, and the prepared clip, whose latents are decoded to the video.

video = clip.render(progress)            # clip: of Generation.prepare(), denoised
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonic.bundle.constants import Constants
from sonic.diffusion import decoding
from sonic.diffusion.conditioning import AudioConditioning
from sonic.diffusion.sampler import ClipSampler
from sonic.engines.base import Engine
from sonic.execution import Execution
from sonic.media.audio import Sound
from sonic.media.lipsync import MouthMotionMeter, shift_sound, sound_offset_frames
from sonic.media.portrait import Portrait
from sonic.media.video import Video, VideoStream
from sonic.options import GenerationOptions
from sonic.plan import ClipPlan
from sonic.progress import Progress
from sonic.schema import PathLike
from sonic.storage.dump import DumpWriter, RowWriter
from sonic.storage.prefetch import run_ahead
from sonic.storage.spool import ArraySpool
from sonic.watermark.payload import Watermark

_FRAMES_AHEAD = 4
#: The arrays of a dump, in files of their names.
DUMPED = ("audio_tokens", "uncond_tokens", "buckets", "latents", "frames")


@dataclass(frozen=True)
class ClipRequest:
    """What to generate: two input files and fully resolved options.

    Attributes:
        image, audio: the portrait and the recording.
        options: resolved with the bundle's constants.
        noise: initial noise, a ``.npy`` file or array, float32 (frames, 4, H/8, W/8), in place of the seed's.
        dump: a folder for intermediate results, or None.
        face_box: x1, y1, x2, y2 in the portrait's pixels, in place of the detector's.
        checkpoint: a file that keeps how far denoising is, or None; see :mod:`sonic.resume`.
        resume: whether to go on with what that file holds.
        scan: the address of a virus scanner, or None.
    """

    image: PathLike
    audio: PathLike
    options: GenerationOptions
    noise: PathLike | np.ndarray | None = None
    dump: PathLike | None = None
    face_box: tuple[float, float, float, float] | None = None
    checkpoint: PathLike | None = None
    resume: bool = True
    scan: str | None = None

    @property
    def sources(self) -> dict[str, PathLike | np.ndarray]:
        """What the clip is made from, by what it is: files, or an array in place of one."""
        named = {"image": self.image, "audio": self.audio, "noise": self.noise}
        return {name: source for name, source in named.items() if source is not None}

    @property
    def input_files(self) -> list[Path]:
        """The files among :attr:`sources`."""
        return [Path(source) for source in self.sources.values() if not isinstance(source, np.ndarray)]


@dataclass(frozen=True)
class PreparedClip:
    """A clip with everything that denoising needs; its denoised latents are decoded to the video.

    Attributes:
        request: what to generate.
        plan: what is computed.
        execution: how many calls run at the same time.
        portrait: the prepared picture.
        sound: the part of the recording that is used.
        conditioning: audio tokens and motion buckets of every frame.
        sampler: the latents; they can be decoded once it has finished.
        engine: runs the submodels.
        dump: writes intermediate results, or None.
        spool_directory: folder of the temporary files that hold large results.
        watermark: what the video's file will say, or None.
    """

    request: ClipRequest
    plan: ClipPlan
    execution: Execution
    portrait: Portrait
    sound: Sound
    conditioning: AudioConditioning
    sampler: ClipSampler
    engine: Engine
    dump: DumpWriter | None
    spool_directory: Path | None
    watermark: Watermark | None

    def render(self, progress: Progress) -> Video:
        """Decode the finished latents to the video: uint8 (frames, H, W, 3) with its sound.

        Raises:
            OutputError: the dump or the frames cannot be written.
            BundleError: a submodel cannot be loaded.
        """
        portrait, sound, options = self.portrait, self.sound, self.request.options
        rate_hz = self._constants.video.frame_rate_hz
        spool = ArraySpool((portrait.height, portrait.width, 3), np.uint8, directory=self.spool_directory)
        meter = MouthMotionMeter(portrait.face_box) if options.lip_sync_correction else None
        for frame in self._frames(progress):
            spool.append(frame[None])
            if meter is not None:
                meter.update(frame)
        if meter is not None:
            sound = shift_sound(sound, sound_offset_frames(meter.signal, sound, rate_hz), rate_hz)
        return Video(spool, rate_hz, sound, self.watermark)

    @contextmanager
    def stream(self, progress: Progress) -> Iterator[VideoStream]:
        """The video of :meth:`render` as a context manager; its frames are computed as they are read, once.

        They can therefore be encoded while the next ones are decoded. With lip-sync correction, the sound
        is only known after all frames have been decoded, so these are computed first.
        """
        if self.request.options.lip_sync_correction:
            video = self.render(progress)
            assert video.sound is not None
            sound, frames = video.sound, _with_progress(video, progress)
        else:
            sound, frames = self.sound, self._frames(progress)
        with closing(frames):
            shape = (self.plan.shown_frames, self.portrait.height, self.portrait.width, 3)
            yield VideoStream(frames, shape, self._constants.video.frame_rate_hz, sound, self.watermark)

    @property
    def _constants(self) -> Constants:
        return self.engine.bundle.manifest.constants

    def _frames(self, progress: Progress) -> Generator[np.ndarray, None, None]:
        """Every frame of the video, uint8 (H, W, 3)."""
        constants, latents, shown = self._constants.video, self.sampler.latents, self.plan.shown_frames
        if self.dump is not None:
            _dump_conditioning(self.dump, self.conditioning, latents)
        with ExitStack() as stack:
            decoder, interpolator = (
                stack.enter_context(self.engine.open(name, self.execution.of(name)))
                for name in ("vae_decoder", "frame_interpolator")
            )
            advance = stack.enter_context(progress.stage("frames", shown))
            counts = self.execution.calls_at_once
            # One pool for both: while few chunks are left to decode, frames are interpolated.
            pool = ThreadPoolExecutor(max(counts.values(), default=1))
            stack.callback(pool.shutdown, cancel_futures=True)
            pictures = decoding.decode(latents, decoder, constants, pool, counts.get("vae_decoder", 1))
            if self.dump is not None:
                dumped = (len(latents), self.portrait.height, self.portrait.width, 3)
                append = stack.enter_context(self.dump.open_rows("frames", dumped, np.uint8))
                pictures = _with_copies(pictures, append)
            if constants.interpolation_factor == 2:
                at_once = counts.get("frame_interpolator", 1)
                pictures = decoding.interpolate(pictures, interpolator, pool, at_once)
            # Inference runs in a thread of its own while frames are smoothed, converted and used here.
            ahead = run_ahead(pictures, _FRAMES_AHEAD)
            stack.callback(ahead.close)
            pictures = ahead
            if self.request.options.smooth_motion:
                pictures = decoding.smooth(pictures)
            for picture in decoding.hold_last(pictures, shown):
                yield decoding.quantize(picture)
                advance()


def _dump_conditioning(writer: DumpWriter, conditioning: AudioConditioning, latents: ArraySpool) -> None:
    writer.write("audio_tokens", conditioning.tokens)
    writer.write("uncond_tokens", conditioning.unconditional_tokens)
    writer.write("buckets", conditioning.buckets)
    writer.write("latents", latents)


def _with_copies(pictures: Iterator[np.ndarray], append: RowWriter) -> Iterator[np.ndarray]:
    """Pass pictures on and write a copy of each as uint8."""
    for picture in pictures:
        append(decoding.quantize(picture))
        yield picture


def _with_progress(video: Video, progress: Progress) -> Generator[np.ndarray, None, None]:
    """A video's frames, with progress as they are read by the encoder."""
    with progress.stage("encoding", len(video)) as advance:
        for frame in video:
            yield frame
            advance()
