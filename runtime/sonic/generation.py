"""One clip on its way from a portrait and a recording to a video.

    with Generation(engine, request, progress) as clip:
        clip.prepare()
        denoise_clips(engine, [clip], progress)
        video = clip.render()

Several clips can be denoised together; everything else happens clip by clip.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sonic.diffusion import decoding as frame_stages
from sonic.diffusion.conditioning import AudioConditioning, condition_on_audio, frame_count
from sonic.diffusion.noise import check_noise, draw_frames, load_noise
from sonic.diffusion.sampler import ClipCondition, ClipSampler, denoise_together
from sonic.engines.base import Submodels
from sonic.errors import InputError
from sonic.host import available_bytes
from sonic.media.audio import Sound, load_sound, mono_samples
from sonic.media.face import Face, detect_faces
from sonic.media.lipsync import MouthMotionMeter, shift_sound, sound_offset_frames
from sonic.media.portrait import Portrait, frame_portrait, load_portrait, resize_mask
from sonic.media.video import Video, VideoStream
from sonic.memory import peak_memory
from sonic.options import BALANCED, GenerationOptions, RunOptions
from sonic.plan import ClipSize
from sonic.progress import Progress
from sonic.storage.dump import DumpWriter, RowWriter
from sonic.storage.prefetch import run_ahead
from sonic.storage.spool import ArraySpool

PathLike = str | os.PathLike[str]
_FRAMES_AHEAD = 4


@dataclass(frozen=True)
class ClipRequest:
    """What is asked for: two files, and options with nothing left open.

    Attributes:
        image, audio: the portrait and the recording.
        options: resolved.
        noise: a ``.npy`` file or array, float32 (frames, 4, H/8, W/8), in place of the seed's.
        dump: a folder for intermediate results, or None.
        face_box: x1, y1, x2, y2 in the portrait's pixels, in place of what the detector finds.
    """

    image: PathLike
    audio: PathLike
    options: GenerationOptions
    noise: PathLike | np.ndarray | None = None
    dump: PathLike | None = None
    face_box: tuple[float, float, float, float] | None = None


class Generation:
    """The stages of one clip; a ``with`` block, at whose end the dump appears.

    Args:
        engine: runs the submodels.
        request: what is asked for.
        progress: shows the stages.
        spool_directory: where long results go while they are made; the system's temporary folder
            by default.
        run: how the submodels run.
        together: clips that are denoised at the same time, this one among them.

    Attributes:
        sampler: the clip's latents, once `prepare` is done.
    """

    sampler: ClipSampler

    def __init__(
        self,
        engine: Submodels,
        request: ClipRequest,
        progress: Progress,
        spool_directory: Path | None = None,
        run: RunOptions = BALANCED,
        together: int = 1,
    ) -> None:
        self._engine, self._run, self._together = engine, run, together
        self._constants = engine.bundle.manifest.constants
        self._request = request
        self._progress = progress
        self._spool_directory = spool_directory
        self._stack = ExitStack()
        self._writer: DumpWriter | None = None

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @contextmanager
    def leave_open(self) -> Iterator[Generation]:
        """A ``with`` block that ends the clip only where it fails; another one has to end it."""
        try:
            yield self
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def prepare(self) -> None:
        """Read both files, and compute everything that denoising is told about the clip.

        Raises:
            InputError: a file or the noise cannot be used, or the clip needs more memory than is free.
            OutputError: the dump or the spool cannot be written.
            BundleError: the bundle cannot be run.
        """
        request, options = self._request, self._request.options
        picture = load_portrait(request.image)
        self._sound = load_speech(request.audio, options)
        if request.dump is not None:
            self._writer = self._stack.enter_context(DumpWriter(request.dump))
        self._portrait = self._prepare_portrait(picture)
        self._check_memory()
        samples = mono_samples(self._sound, self._constants.audio.sample_rate_hz)
        noise = self._initial_noise(self._frame_count(samples))
        condition = self._condition(samples)
        assert options.steps is not None
        self.sampler = ClipSampler(
            noise, condition, options.steps, self._constants.sampler, self._run.branches_at_once,
            self._spool_directory,
        )  # fmt: skip

    def render(self, progress: Progress | None = None) -> Video:
        """Decode the finished latents to the video: uint8 (frames, H, W, 3) and its sound.

        `progress` shows it in place of the clip's own.
        """
        options, portrait, sound = self._request.options, self._portrait, self._sound
        rate_hz = self._constants.video.frame_rate_hz
        spool = ArraySpool((portrait.height, portrait.width, 3), np.uint8, directory=self._spool_directory)
        meter = MouthMotionMeter(portrait.face_box) if options.lip_sync_correction else None
        for frame in self._frames(progress or self._progress):
            spool.append(frame[None])
            if meter is not None:
                meter.update(frame)
        if meter is not None:
            sound = shift_sound(sound, sound_offset_frames(meter.signal, sound, rate_hz), rate_hz)
        return Video(spool, rate_hz, sound)

    @contextmanager
    def stream(self) -> Iterator[VideoStream]:
        """The video of :meth:`render` for a ``with`` block; its frames are made as they are read, once.

        So they can be encoded while the next ones are decoded. Lip-sync correction needs all frames
        before it knows the sound; they are all made first then.
        """
        if self._request.options.lip_sync_correction:
            video = self.render()
            assert video.sound is not None
            sound, frames = video.sound, _told(video, self._progress)
        else:
            sound, frames = self._sound, self._frames(self._progress)
        with closing(frames):
            shape = (self._frame_total, self._portrait.height, self._portrait.width, 3)
            yield VideoStream(frames, shape, self._constants.video.frame_rate_hz, sound)

    @property
    def _frame_total(self) -> int:
        return max(1, round(self._sound.duration_seconds * self._constants.video.frame_rate_hz))

    def _frames(self, progress: Progress) -> Generator[np.ndarray, None, None]:
        """Every frame of the video, uint8 (H, W, 3)."""
        constants, latents = self._constants.video, self.sampler.latents
        if self._writer is not None:
            _dump_conditioning(self._writer, self._conditioning, latents)
        with ExitStack() as stack:
            decoder = stack.enter_context(self._engine.open("vae_decoder"))
            interpolator = stack.enter_context(self._engine.open("frame_interpolator"))
            advance = stack.enter_context(progress.stage("frames", self._frame_total))
            pictures = frame_stages.decode(latents, decoder, constants)
            if self._writer is not None:
                dumped = (len(latents), self._portrait.height, self._portrait.width, 3)
                append = stack.enter_context(self._writer.open_rows("frames", dumped, np.uint8))
                pictures = _copied(pictures, append)
            if constants.interpolation_factor == 2:
                pictures = frame_stages.interpolate(pictures, interpolator)
            # Inference goes on in its own thread while frames are smoothed, converted and used here.
            ahead = run_ahead(pictures, _FRAMES_AHEAD)
            stack.callback(ahead.close)
            pictures = ahead
            if self._request.options.smooth_motion:
                pictures = frame_stages.smooth(pictures)
            for picture in frame_stages.hold_last(pictures, self._frame_total):
                yield frame_stages.quantize(picture)
                advance()

    def _prepare_portrait(self, picture: Image.Image) -> Portrait:
        constants, request = self._constants, self._request
        name, options = str(request.image), request.options
        if request.face_box is not None:
            known = [Face.at(request.face_box)]
            return frame_portrait(
                # In a crop of the picture the box has moved, which `frame_portrait` knows better.
                picture, name, lambda image: known if image is picture else [], options, constants.portrait
            )  # fmt: skip
        with self._engine.open("face_detector") as detector:

            def detect(image: Image.Image) -> list[Face]:
                return detect_faces(np.asarray(image), detector.run, constants.face)

            return frame_portrait(picture, name, detect, options, constants.portrait)

    def _check_memory(self) -> None:
        """Refuse now what would be killed for its memory after hours."""
        portrait, options = self._portrait, self._request.options
        assert options.steps is not None
        clip = ClipSize(self._sound.duration_seconds, portrait.width, portrait.height, options.steps)
        stage, needed = peak_memory(self._engine.bundle.manifest, clip, self._run, self._together)
        available = available_bytes()
        if needed > available:
            raise InputError(
                f"this clip of {clip.seconds:.1f} s at {clip.width}x{clip.height} pixels needs about "
                f"{needed / 1e9:.2f} GB of memory (in '{stage}'), but {available / 1e9:.2f} GB are free; "
                "choose a lower resolution"
                + ("" if self._run.memory == "low" else " or the memory mode 'low'")
            )

    def _frame_count(self, samples: np.ndarray) -> int:
        audio = self._constants.audio
        frames = frame_count(len(samples), audio)
        if frames < 1:
            shortest = audio.samples_per_frame / audio.sample_rate_hz
            raise InputError(
                f"the recording lasts {self._sound.duration_seconds:.3f} s, but one frame needs "
                f"{shortest:g} s"
            )
        return frames

    def _initial_noise(self, frames: int) -> Iterable[np.ndarray]:
        video, noise = self._constants.video, self._request.noise
        stride = video.latent_stride_pixels
        height, width = self._portrait.height // stride, self._portrait.width // stride
        shape = (frames, video.latent_channels, height, width)
        if noise is None:
            seed = self._request.options.seed
            assert seed is not None
            return draw_frames(seed, *shape)
        array, name = (noise, "noise") if isinstance(noise, np.ndarray) else (load_noise(noise), str(noise))
        check_noise(array, name, shape)
        return array

    def _condition(self, samples: np.ndarray) -> ClipCondition:
        audio, portrait, options = self._constants.audio, self._portrait, self._request.options
        with self._progress.stage("portrait", 2) as advance:
            with self._engine.open("image_encoder") as image_encoder:
                inputs = {"pixel_values": portrait.image_encoder_input}
                embedding = image_encoder.run(inputs)["image_embedding"]
            advance()
            with self._engine.open("vae_encoder") as vae_encoder:
                reference = vae_encoder.run({"image": portrait.reference})["latent"]
            advance()
        windows = -(-len(samples) // audio.window_samples)
        with self._progress.stage("speech", windows) as advance:
            conditioning = self._conditioning = condition_on_audio(
                samples,
                embedding,
                self._engine.bundle.asset("mel_filters"),
                self._engine,
                audio,
                advance,
                self._spool_directory,
            )
        scales = np.array([options.dynamic_scale, options.dynamic_scale * options.motion_scale], np.float32)
        unet = self._engine.bundle.manifest.submodels["unet"]
        levels = sum(tensor.name.startswith("mask_") for tensor in unet.inputs)
        height, width = reference.shape[2:]
        masks = [resize_mask(portrait.face_mask, height >> level, width >> level) for level in range(levels)]
        return ClipCondition(
            reference_latent=reference[0],
            image_embedding=embedding[0],
            audio_tokens=conditioning.tokens,
            unconditional_tokens=conditioning.unconditional_tokens,
            buckets=conditioning.buckets * scales,
            masks=masks,
        )


def denoise_clips(
    engine: Submodels, clips: Sequence[Generation], progress: Progress, calls_at_once: int = 1
) -> None:
    """Denoise clips that are prepared; `calls_at_once` calls of the UNet run at the same time."""
    samplers = [clip.sampler for clip in clips]
    total = sum(sampler.window_count for sampler in samplers)
    with engine.open("unet") as unet, progress.stage("denoising", total) as advance:
        denoise_together(samplers, unet, calls_at_once, advance)


def load_speech(path: PathLike, options: GenerationOptions) -> Sound:
    """The part of a recording that `options` ask for.

    Raises:
        InputError: the recording cannot be used, or is shorter than the duration asked for.
    """
    sound = load_sound(path, maximum_seconds=options.duration_seconds)
    wanted = options.duration_seconds
    if wanted is not None and sound.duration_seconds + 1.5 / sound.sample_rate_hz < wanted:
        raise InputError(
            f"duration is {wanted:g} s, but {path} lasts {sound.duration_seconds:.3f} s; "
            "ask for at most its length"
        )
    return sound


def _dump_conditioning(writer: DumpWriter, conditioning: AudioConditioning, latents: ArraySpool) -> None:
    writer.write("audio_tokens", conditioning.tokens)
    writer.write("uncond_tokens", conditioning.unconditional_tokens)
    writer.write("buckets", conditioning.buckets)
    writer.write("latents", latents)


def _copied(pictures: Iterator[np.ndarray], append: RowWriter) -> Iterator[np.ndarray]:
    """Pass pictures on, and write each as uint8."""
    for picture in pictures:
        append(frame_stages.quantize(picture))
        yield picture


def _told(video: Video, progress: Progress) -> Generator[np.ndarray, None, None]:
    """A video's frames, with a bar for what is done with them."""
    with progress.stage("encoding", len(video)) as advance:
        for frame in video:
            yield frame
            advance()
