"""The stages that take one clip from a portrait and a recording to a video.

    with Generation(engine, request, progress) as generation:
        clip = generation.prepare()
        denoise_clips(engine, [clip], progress)
        video = clip.render(progress)

Several clips can be denoised together; everything else is done clip by clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from sonic.diffusion.conditioning import AudioConditioning, condition_on_audio, frame_count
from sonic.diffusion.denoising import denoise_together
from sonic.diffusion.noise import check_noise, draw_frames, load_noise
from sonic.diffusion.sampler import ClipCondition, ClipSampler
from sonic.engines.base import Engine
from sonic.errors import InputError
from sonic.execution import Execution, choose_execution
from sonic.media.audio import Sound, load_sound, mono_samples
from sonic.media.checks import check_not_an_input
from sonic.media.face import Face, detect_faces
from sonic.media.portrait import Portrait, load_portrait, portrait_from_picture, resize_mask
from sonic.memory import check_memory
from sonic.options import AUTOMATIC, GenerationOptions, IntakeLimits, RunOptions
from sonic.plan import ClipPlan, ClipSize, denoising_steps, plan_clip
from sonic.prepared_clip import DUMPED, ClipRequest, PreparedClip
from sonic.progress import Progress, announce
from sonic.resume import ClipCheckpoint, ClipIdentity, FileIdentity, clip_watermark, identities
from sonic.scan import scan_files
from sonic.schema import PathLike
from sonic.storage.dump import DumpWriter


class Generation:
    """Prepares one clip; a context manager, at whose end the dump's files appear.

    Args:
        engine: runs the submodels.
        request: what to generate.
        progress: shows the stages.
        spool_directory: folder of the temporary files that hold large results; the system's temporary
            folder by default.
        run: how the submodels run.
        together: the number of clips that are denoised at the same time, including this one.
        checkpoint: keeps the steps that are done, and may have some to go on with.
        in_batch: whether earlier clips are decoded while this one is denoised.
        one_by_one: whether there is one call of a submodel at a time, for an observer.
        limits: of the portrait and the recording, and of decoding them; the environment's by default.
    """

    def __init__(
        self,
        engine: Engine,
        request: ClipRequest,
        progress: Progress,
        spool_directory: Path | None = None,
        run: RunOptions = AUTOMATIC,
        together: int = 1,
        checkpoint: ClipCheckpoint | None = None,
        in_batch: bool = False,
        one_by_one: bool = False,
        limits: IntakeLimits | None = None,
    ) -> None:
        self._engine, self._run, self._together = engine, run, together
        self._in_batch, self._one_by_one = in_batch, one_by_one
        self._constants = engine.bundle.manifest.constants
        self._request = request
        self._progress = progress
        self._spool_directory, self._limits = spool_directory, limits
        self._checkpoint = checkpoint
        self._stack = ExitStack()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def prepare(self) -> PreparedClip:
        """Read both input files, and compute the clip's plan and its conditioning.

        Raises:
            InputError: a file or the noise cannot be used or is infected, or the clip needs more memory
                than is free.
            OutputError: the dump or the spool cannot be written.
            BundleError: the bundle cannot be run.
        """
        request, options = self._request, self._request.options
        written = [] if request.checkpoint is None else [Path(request.checkpoint)]
        if request.dump is not None:
            written += [Path(request.dump, f"{name}.npy") for name in DUMPED]
        for path in written:
            check_not_an_input(path, request.input_files)
        if request.scan is not None:
            scan_files(request.scan, request.input_files)
        picture = load_portrait(request.image, self._limits)
        sound = load_speech(request.audio, options, self._limits, self._spool_directory)
        dump = None if request.dump is None else self._stack.enter_context(DumpWriter(request.dump))
        portrait = self._prepare_portrait(picture)
        samples = mono_samples(sound, self._constants.audio.sample_rate_hz)
        plan = self._make_plan(portrait, sound, samples)
        noise = self._initial_noise(plan)
        execution = self._choose_execution(plan)
        conditioning, condition = self._condition(portrait, samples)
        sampler = self._make_sampler(noise, condition, plan)
        return PreparedClip(
            request,
            plan,
            execution,
            portrait,
            sound,
            conditioning,
            sampler,
            self._engine,
            dump,
            self._spool_directory,
            clip_watermark(self._engine.bundle, self._files, options, request.face_box)
            if options.watermark
            else None,
        )

    @cached_property
    def _files(self) -> dict[str, FileIdentity]:
        """What the clip is made from; read once, as a recording may have hundreds of megabytes."""
        return identities(self._request.sources)

    def _make_sampler(
        self, noise: Iterable[np.ndarray], condition: ClipCondition, plan: ClipPlan
    ) -> ClipSampler:
        """The clip's sampler, taken to where its checkpoint left it."""
        constants, directory = self._constants.sampler, self._spool_directory
        if self._checkpoint is None or self._checkpoint.path is None:
            return ClipSampler(noise, condition, plan.denoising, constants, directory)
        after_step = self._checkpoint.after_step
        sampler = ClipSampler(noise, condition, plan.denoising, constants, directory, after_step)
        request, bundle = self._request, self._engine.bundle
        identity = ClipIdentity.of(
            bundle, self._files, request.options, request.face_box, self._run, plan.denoising
        )
        self._checkpoint.restore(sampler, identity)
        return sampler

    def _make_plan(self, portrait: Portrait, sound: Sound, samples: np.ndarray) -> ClipPlan:
        manifest, audio = self._engine.bundle.manifest, self._constants.audio
        frames = frame_count(len(samples), audio)
        size = ClipSize(sound.duration_seconds, portrait.width, portrait.height)
        steps = denoising_steps(manifest, self._request.options)
        plan = plan_clip(self._constants, size, steps, max(frames, 1))
        if frames < 1:
            shortest = audio.samples_per_frame / audio.sample_rate_hz
            raise InputError(
                f"the recording lasts {sound.duration_seconds:.3f} s, but one frame needs {shortest:g} s"
            )
        return plan

    def _choose_execution(self, plan: ClipPlan) -> Execution:
        manifest = self._engine.bundle.manifest
        alike = [plan] * self._together
        execution = choose_execution(manifest, alike, self._run, in_batch=self._in_batch)
        if self._one_by_one:
            execution = execution.one_by_one
        check_memory(manifest, plan, execution.calls_at_once, self._together, self._in_batch)
        if not self._in_batch:
            announce(self._progress, f"execution: {execution}")
        return execution

    def _prepare_portrait(self, picture: Image.Image) -> Portrait:
        constants, request = self._constants, self._request
        name, options = str(request.image), request.options
        if request.face_box is not None:
            known = [Face.at(request.face_box)]
            return portrait_from_picture(
                picture,
                name,
                # In a crop of the picture the box is elsewhere; `portrait_from_picture` works out where.
                lambda image: known if image is picture else [],
                options,
                constants.portrait,
            )
        with self._engine.open("face_detector") as detector:

            def detect(image: Image.Image) -> list[Face]:
                return detect_faces(np.asarray(image), detector.run, constants.face)

            return portrait_from_picture(picture, name, detect, options, constants.portrait)

    def _initial_noise(self, plan: ClipPlan) -> Iterable[np.ndarray]:
        video, noise = self._constants.video, self._request.noise
        stride = video.latent_stride_pixels
        height, width = plan.size.height // stride, plan.size.width // stride
        shape = (plan.generated_frames, video.latent_channels, height, width)
        if noise is None:
            seed = self._request.options.seed
            assert seed is not None
            return draw_frames(seed, *shape)
        array, name = (noise, "noise") if isinstance(noise, np.ndarray) else (load_noise(noise), str(noise))
        check_noise(array, name, shape)
        return array

    def _condition(self, portrait: Portrait, samples: np.ndarray) -> tuple[AudioConditioning, ClipCondition]:
        audio, options = self._constants.audio, self._request.options
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
            conditioning = condition_on_audio(
                samples,
                embedding,
                self._engine.bundle.asset("mel_filters"),
                self._engine,
                audio,
                advance,
                self._spool_directory,
            )
        scales = np.array([options.dynamic_scale, options.dynamic_scale * options.motion_scale], np.float32)
        height, width = reference.shape[2:]
        levels = self._engine.bundle.manifest.submodels["unet"].mask_levels
        masks = [resize_mask(portrait.face_mask, height >> level, width >> level) for level in range(levels)]
        condition = ClipCondition(
            reference_latent=reference[0],
            image_embedding=embedding[0],
            audio_tokens=conditioning.tokens,
            unconditional_tokens=conditioning.unconditional_tokens,
            buckets=conditioning.buckets * scales,
            masks=masks,
        )
        return conditioning, condition


def denoise_clips(
    engine: Engine,
    clips: Sequence[PreparedClip],
    progress: Progress,
    execution: Execution | None = None,
    finished: Callable[[int], None] = lambda index: None,
) -> None:
    """Denoise clips together.

    Args:
        engine: runs the UNet.
        clips: the clips, whose samplers are changed.
        progress: shows the stage.
        execution: how many calls run at the same time; by default, that of the first clip.
        finished: called with the place of each clip in `clips` as soon as it is denoised.

    Raises:
        BundleError: the UNet cannot be loaded, or returned values that are not finite.
        OutputError: the latents cannot be stored.
    """
    samplers = [clip.sampler for clip in clips]
    for index, sampler in enumerate(samplers):
        if sampler.finished:  # restored
            finished(index)
    left = [index for index, sampler in enumerate(samplers) if not sampler.finished]
    if not left:  # the UNet is not needed
        return
    total = sum(sampler.plan.window_count for sampler in samplers)
    done = sum(sampler.plan.windows_until(sampler.step) for sampler in samplers)
    chosen = (execution or clips[0].execution).of("unet")
    calls_at_once = chosen.calls_at_once if chosen else 1
    with engine.open("unet", chosen) as unet, progress.stage("denoising", total, done) as advance:
        denoise_together(
            [samplers[index] for index in left],
            unet,
            calls_at_once,
            advance,
            lambda place: finished(left[place]),
        )


def load_speech(
    path: PathLike,
    options: GenerationOptions,
    limits: IntakeLimits | None = None,
    spool_directory: Path | None = None,
) -> Sound:
    """Load the part of a recording that `options` ask for.

    Raises:
        InputError: the recording cannot be used, or is shorter than the requested duration.
    """
    sound = load_sound(path, options.duration, limits, spool_directory)
    wanted = options.duration
    if wanted is not None and sound.duration_seconds + 1.5 / sound.sample_rate_hz < wanted:
        raise InputError(
            f"duration is {wanted:g} s, but {path} lasts {sound.duration_seconds:.3f} s; "
            "ask for at most its length"
        )
    return sound
