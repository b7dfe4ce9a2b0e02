"""A loaded bundle and the whole way from a portrait and a recording to a video.

    model = load_model("sonic-base")
    video = model.generate(image="portrait.jpg", audio="speech.wav", inference_steps=25)
    save_video(video, "output.mp4")
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from sonic import frames as frame_stages
from sonic.audio import Sound, load_sound, mono_samples
from sonic.bundle import find_bundle, open_bundle
from sonic.conditioning import AudioConditioning, condition_on_audio, frame_count
from sonic.constants import Constants
from sonic.dump import DumpWriter, RowWriter
from sonic.engine import Engine, Observer, make_engine
from sonic.errors import InputError
from sonic.face import Face, detect_faces
from sonic.lipsync import MouthMotionMeter, shift_sound, sound_offset_frames
from sonic.manifest import Manifest
from sonic.noise import check_noise, draw_noise, load_noise
from sonic.options import GenerationOptions
from sonic.portrait import Portrait, crop_box, load_portrait, prepare_portrait, resize_mask
from sonic.progress import Progress, default_progress
from sonic.sampler import ClipCondition, denoise, window_indices
from sonic.spool import ArraySpool
from sonic.video import Video

PathLike = str | os.PathLike[str]


class SonicWarning(UserWarning):
    """Something the user may want to know about an input; the result is as documented."""


def load_model(
    name: PathLike, *, threads: int | None = None, check_digests: bool = True
) -> SonicModel:
    """Load a bundle by path, or by name from ``$SONIC_HOME``, ``./bundles`` or the user's data folder.

    Args:
        name: a bundle's name or path.
        threads: threads for one operator; None lets the engine choose.
        check_digests: compare every file with the manifest's sha256.

    Raises:
        BundleError: there is no such bundle, or its files are missing, changed or too many.
    """
    bundle = open_bundle(find_bundle(name), check_digests=check_digests)
    return SonicModel(make_engine(bundle, threads))


class SonicModel:
    """Generates videos with one bundle; make it with :func:`load_model`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

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
                the sound by at most two frames (formula: :func:`sonic.lipsync.sound_offset_frames`).
            smooth_motion: filter out jitter over time (formula:
                :class:`sonic.smoothing.TemporalSmoother`).
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
        options = GenerationOptions(
            duration_seconds=duration,
            resolution_pixels=min_resolution,
            steps=inference_steps,
            seed=seed,
            dynamic_scale=dynamic_scale,
            motion_scale=motion_scale,
            expand_ratio=expand_ratio,
            lip_sync_correction=lip_sync_correction,
            smooth_motion=smooth_motion,
        ).resolved(self.constants)
        progress = progress or default_progress()
        spool = None if spool_directory is None else Path(spool_directory)
        with ExitStack() as stack:
            stack.enter_context(self._observed(observer))
            picture = load_portrait(image)
            sound = load_speech(audio, options)
            writer = stack.enter_context(DumpWriter(dump)) if dump is not None else None
            portrait = self._prepare_portrait(picture, str(image), options)
            samples = mono_samples(sound, self.constants.audio.sample_rate_hz)
            frames = self._frame_count(samples, sound)
            initial_noise = self._noise(noise, frames, portrait, options)
            condition, conditioning = self._condition(portrait, samples, options, progress, spool)
            latents = self._denoise(initial_noise, condition, options, progress)
            if writer is not None:
                _dump_conditioning(writer, conditioning, latents)
            return self._render(latents, portrait, sound, options, progress, writer, spool)

    @contextmanager
    def _observed(self, observer: Observer | None) -> Iterator[None]:
        before, self.engine.observer = self.engine.observer, observer or self.engine.observer
        try:
            yield
        finally:
            self.engine.observer = before

    def _prepare_portrait(
        self, picture: Image.Image, path: str, options: GenerationOptions
    ) -> Portrait:
        faces = self._detect(picture)
        if not faces:
            raise InputError(f"no face was found in {path}; use a picture that shows one from the front")
        if len(faces) > 1:
            _warn(f"{path} shows {len(faces)} faces; the largest one is used")
        box = faces[0].box
        if options.expand_ratio is not None:
            crop = crop_box(box, options.expand_ratio, *picture.size)
            picture = picture.crop(crop)
            left, top = crop[:2]
            cropped = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
            # As published: the face is detected again in the crop.
            found_again = self._detect(picture)
            box = found_again[0].box if found_again else cropped
        resolution = options.resolution_pixels
        assert resolution is not None
        limit = self.constants.portrait.enlargement_limit_pixels
        if min(picture.size) < limit < resolution:
            what = "the face crop of " if options.expand_ratio is not None else ""
            _warn(
                f"the short side of {what}{path} has {min(picture.size)} pixels, so the resolution "
                f"is lowered from {resolution} to {limit}"
            )
            resolution = limit
        return prepare_portrait(picture, box, resolution, self.constants.portrait)

    def _detect(self, picture: Image.Image) -> list[Face]:
        with self.engine.open("face_detector") as detector:
            return detect_faces(np.asarray(picture), detector.run, self.constants.face)

    def _frame_count(self, samples: np.ndarray, sound: Sound) -> int:
        frames = frame_count(len(samples), self.constants.audio)
        if frames < 1:
            shortest = self.constants.audio.samples_per_frame / self.constants.audio.sample_rate_hz
            raise InputError(
                f"the recording lasts {sound.duration_seconds:.3f} s, but one frame needs {shortest:g} s"
            )
        return frames

    def _noise(
        self,
        noise: PathLike | np.ndarray | None,
        frames: int,
        portrait: Portrait,
        options: GenerationOptions,
    ) -> np.ndarray:
        video = self.constants.video
        stride = video.latent_stride_pixels
        shape = (frames, video.latent_channels, portrait.height // stride, portrait.width // stride)
        if noise is None:
            assert options.seed is not None
            return draw_noise(options.seed, *shape)
        array, name = (noise, "noise") if isinstance(noise, np.ndarray) else (load_noise(noise), str(noise))
        check_noise(array, name, shape)
        return array

    def _condition(
        self,
        portrait: Portrait,
        samples: np.ndarray,
        options: GenerationOptions,
        progress: Progress,
        spool: Path | None,
    ) -> tuple[ClipCondition, AudioConditioning]:
        audio = self.constants.audio
        with progress.stage("portrait", 2) as advance:
            with self.engine.open("image_encoder") as image_encoder:
                inputs = {"pixel_values": portrait.image_encoder_input}
                embedding = image_encoder.run(inputs)["image_embedding"]
            advance()
            with self.engine.open("vae_encoder") as vae_encoder:
                reference = vae_encoder.run({"image": portrait.reference})["latent"]
            advance()
        windows = -(-len(samples) // audio.window_samples)
        with progress.stage("speech", windows) as advance:
            conditioning = condition_on_audio(
                samples,
                embedding,
                self.engine.bundle.asset("mel_filters"),
                self.engine,
                audio,
                advance,
                spool,
            )
        scales = np.array(
            [options.dynamic_scale, options.dynamic_scale * options.motion_scale], np.float32
        )
        levels = sum(
            tensor.name.startswith("mask_") for tensor in self.manifest.submodels["unet"].inputs
        )
        latent_height, latent_width = reference.shape[2:]
        masks = [
            resize_mask(portrait.face_mask, latent_height >> level, latent_width >> level)
            for level in range(levels)
        ]
        condition = ClipCondition(
            reference_latent=reference[0],
            image_embedding=embedding[0],
            audio_tokens=conditioning.tokens,
            unconditional_tokens=conditioning.unconditional_tokens,
            buckets=conditioning.buckets * scales,
            masks=masks,
        )
        return condition, conditioning

    def _denoise(
        self,
        noise: np.ndarray,
        condition: ClipCondition,
        options: GenerationOptions,
        progress: Progress,
    ) -> np.ndarray:
        sampler = self.constants.sampler
        assert options.steps is not None
        windows = len(window_indices(len(noise), 0, sampler))
        with (
            self.engine.open("unet") as unet,
            progress.stage("denoising", options.steps * windows) as advance,
        ):
            return denoise(noise, condition, unet, options.steps, sampler, advance)

    def _render(
        self,
        latents: np.ndarray,
        portrait: Portrait,
        sound: Sound,
        options: GenerationOptions,
        progress: Progress,
        writer: DumpWriter | None,
        spool_directory: Path | None,
    ) -> Video:
        constants = self.constants.video
        count = max(1, round(sound.duration_seconds * constants.frame_rate_hz))
        shape = (portrait.height, portrait.width, 3)
        spool = ArraySpool(shape, np.uint8, directory=spool_directory)
        meter = MouthMotionMeter(portrait.face_box) if options.lip_sync_correction else None
        with ExitStack() as stack:
            decoder = stack.enter_context(self.engine.open("vae_decoder"))
            interpolator = stack.enter_context(self.engine.open("frame_interpolator"))
            advance = stack.enter_context(progress.stage("frames", count))
            pictures = frame_stages.decode(latents, decoder, constants)
            if writer is not None:
                dumped = (len(latents), *shape)
                append = stack.enter_context(writer.open_rows("frames", dumped, np.uint8))
                pictures = _copied(pictures, append)
            if constants.interpolation_factor == 2:
                pictures = frame_stages.interpolate(pictures, interpolator)
            if options.smooth_motion:
                pictures = frame_stages.smooth(pictures)
            for picture in frame_stages.hold_last(pictures, count):
                frame = frame_stages.quantize(picture)
                spool.append(frame[None])
                if meter is not None:
                    meter.update(frame)
                advance()
        if meter is not None:
            offset = sound_offset_frames(meter.signal, sound, constants.frame_rate_hz)
            sound = shift_sound(sound, offset, constants.frame_rate_hz)
        return Video(spool, frame_rate_hz=constants.frame_rate_hz, sound=sound)


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


def _dump_conditioning(
    writer: DumpWriter, conditioning: AudioConditioning, latents: np.ndarray
) -> None:
    tokens = conditioning.tokens
    writer.write_rows("audio_tokens", tokens, tokens.shape, np.float32)
    writer.write("uncond_tokens", conditioning.unconditional_tokens)
    writer.write("buckets", conditioning.buckets)
    writer.write("latents", latents)


def _copied(pictures: Iterator[np.ndarray], append: RowWriter) -> Iterator[np.ndarray]:
    """Pass pictures on, and write each as uint8."""
    for picture in pictures:
        append(frame_stages.quantize(picture))
        yield picture


def _warn(message: str) -> None:
    warnings.warn(message, SonicWarning, stacklevel=4)


__all__ = ["SonicModel", "SonicWarning", "load_model"]
