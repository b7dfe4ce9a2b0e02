"""The whole pipeline in PyTorch, as published: the ground truth that bundles are compared with.

Audio features come from transformers, sigmas and steps from diffusers' scheduler, and the networks run
their published forwards. The portrait's geometry (crop, mask, Lanczos resampling) is the runtime's own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from sonic.diffusion.noise import check_noise, draw_noise
from sonic.diffusion.steps import Guidance
from sonic.generation import load_speech
from sonic.media.audio import Sound, mono_samples
from sonic.media.face import Face, detect_faces
from sonic.media.portrait import Portrait, load_portrait, portrait_from_picture
from sonic.options import GenerationOptions
from sonic.progress import NoProgress, Progress
from sonic.schema import PathLike
from sonic.storage.dump import DumpWriter
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.export.submodels import find_submodel

Detector = Callable[[Image.Image], list[Face]]
"""Finds the faces of a picture, the largest first."""


@dataclass(frozen=True)
class ReferenceResult:
    """What the published pipeline computes.

    Attributes:
        audio_tokens: (frames, tokens, width) float32.
        unconditional_tokens: (tokens, width) float32.
        buckets: (frames, 2) float32, before `dynamic_scale`.
        latents: (frames, 4, h, w) float32.
        frames: (frames, H, W, 3) uint8 before interpolation.
        interpolated: (2 * frames - 1, H, W, 3) uint8.
        sound: the recording that was used.
    """

    audio_tokens: np.ndarray
    unconditional_tokens: np.ndarray
    buckets: np.ndarray
    latents: np.ndarray
    frames: np.ndarray
    interpolated: np.ndarray
    sound: Sound


def write_dump(result: ReferenceResult, directory: PathLike) -> None:
    """Write intermediate results as `SonicModel.generate` dumps its own.

    Raises:
        OutputError: the folder cannot be written.
    """
    with DumpWriter(directory) as writer:
        writer.write("audio_tokens", result.audio_tokens)
        writer.write("uncond_tokens", result.unconditional_tokens)
        writer.write("buckets", result.buckets)
        writer.write("latents", result.latents)
        writer.write("frames", result.frames)


class TorchReference:
    """Runs a checkpoint in PyTorch, float32, one network in memory at a time.

    Args:
        checkpoint: the weights.
        loaded: called with every network's name and module after it is loaded, before it is used.
    """

    def __init__(
        self, checkpoint: Checkpoint, loaded: Callable[[str, nn.Module], None] | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.constants = checkpoint.constants
        self._loaded = loaded

    @contextmanager
    def network(self, name: str) -> Iterator[nn.Module]:
        """A submodel of the table with its published forward; it is freed at the end of the block."""
        module = find_submodel(name).build_published(self.checkpoint)
        try:
            if self._loaded is not None:
                self._loaded(name, module)
            yield module
        finally:
            del module
            gc.collect()

    @torch.inference_mode()
    def generate(
        self,
        image: Path,
        audio: Path,
        options: GenerationOptions,
        noise: np.ndarray | None = None,
        progress: Progress | None = None,
        detector: Detector | None = None,
    ) -> ReferenceResult:
        """Generate a clip.

        Args:
            image, audio: as for :meth:`sonic.SonicModel.generate`.
            options: `lip_sync_correction`, `smooth_motion`, `speed` and `sigmas` are not part of the
                published pipeline, and are left out.
            noise: (frames, 4, h, w) float32; drawn from the seed as the runtime does by default.
            progress: shows the stages.
            detector: finds the face in place of the checkpoint's own. A mask's edges are whole pixels, so
                that a box that differs in its last bits can move an edge by a pixel: to compare later
                results, give both sides the same detector.
        """
        progress = progress or NoProgress()
        options = replace(options, speed=None, sigmas=None).resolved(self.constants)
        portrait = self.portrait(image, options, detector)
        sound = load_speech(audio, options)
        with progress.stage("torch: portrait", 2) as advance:
            with self.network("image_encoder") as encoder:
                embedding = encoder(torch.from_numpy(portrait.image_encoder_input))
            advance()
            with self.network("vae_encoder") as encoder:
                reference = encoder(torch.from_numpy(portrait.reference))
            advance()
        with progress.stage("torch: speech", 1) as advance:
            tokens, unconditional, buckets = self._speech(sound, embedding)
            advance()
        shape = (len(tokens), *reference.shape[1:])
        if noise is None:
            assert options.seed is not None
            noise = draw_noise(options.seed, *shape)
        check_noise(noise, "noise", shape)
        latents = self._denoise(
            torch.from_numpy(noise), reference, embedding, tokens, unconditional, buckets,
            torch.from_numpy(portrait.face_mask), options, progress,
        )  # fmt: skip
        video = self._decode(latents, progress)
        interpolated = self._interpolate(video, progress)
        return ReferenceResult(
            tokens.numpy(),
            unconditional.numpy(),
            buckets.numpy(),
            latents.numpy(),
            _quantize(video),
            _quantize(interpolated),
            sound,
        )

    def portrait(self, image: Path, options: GenerationOptions, detector: Detector | None = None) -> Portrait:
        """The prepared portrait, with the face that the checkpoint's own detector, or `detector`, finds."""
        if detector is None:
            with self.network("face_detector") as network:

                def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                    arrays = [torch.from_numpy(np.ascontiguousarray(a)) for a in inputs.values()]
                    return {"predictions": network(*arrays).numpy()}

                def detect(picture: Image.Image) -> list[Face]:
                    return detect_faces(np.asarray(picture), run, self.constants.face)

                return self.portrait(image, options, detect)
        return portrait_from_picture(
            load_portrait(image), str(image), detector, options, self.constants.portrait
        )

    def _speech(self, sound: Sound, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Audio tokens (frames, tokens, width), those of silence (tokens, width), and buckets (frames, 2)."""
        audio = self.constants.audio
        samples = mono_samples(sound, audio.sample_rate_hz)
        extractor = WhisperFeatureExtractor(feature_size=audio.mel_bins)
        units = len(samples) // audio.unit_samples
        states = []
        with self.network("audio_encoder") as encoder:
            for start in range(0, len(samples), audio.window_samples):
                features = extractor(
                    samples[start : start + audio.window_samples],
                    sampling_rate=audio.sample_rate_hz,
                    return_tensors="pt",
                ).input_features
                states.append(encoder(features)[0])
        all_states = torch.cat(states)[: units * audio.states_per_unit]
        for_tokens = _pad(all_states, audio.token_padding_states)
        for_buckets = _pad(all_states[:, -1:], audio.bucket_padding_states)
        frames = units // audio.units_per_frame
        with self.network("audio2token") as audio2token, self.network("audio2bucket") as audio2bucket:

            def window(padded: Tensor, frame: int, length: int) -> Tensor:
                start = frame * audio.states_per_frame
                return padded[start : start + length][None, None]

            tokens = [audio2token(window(for_tokens, i, audio.token_window_states)) for i in range(frames)]
            silence = audio2token(torch.zeros_like(window(for_tokens, 0, audio.token_window_states)))
            buckets = [
                audio2bucket(window(for_buckets, i, audio.bucket_window_states), embedding)
                for i in range(frames)
            ]
        scaled = torch.stack([b[0, 0, :, 0] for b in buckets]) * audio.bucket_scale
        return torch.cat(tokens, dim=1)[0], silence[0, 0], scaled + audio.bucket_offset

    def _denoise(
        self,
        noise: Tensor,
        reference: Tensor,
        embedding: Tensor,
        tokens: Tensor,
        unconditional: Tensor,
        buckets: Tensor,
        face_mask: Tensor,
        options: GenerationOptions,
        progress: Progress,
    ) -> Tensor:
        """Sample with diffusers' scheduler over windows that wrap around, as published."""
        sampler = self.constants.sampler
        assert options.inference_steps is not None
        scheduler = EulerDiscreteScheduler.from_config(self.checkpoint.scheduler_config)
        scheduler.set_timesteps(options.inference_steps)
        frames = len(noise)
        first = scheduler.timesteps[:1]
        latents = scheduler.add_noise(reference * sampler.initial_latent_scale, noise, first)
        guidance = Guidance.of(sampler, options.image_guidance, options.audio_guidance)
        image_guidance = torch.linspace(*guidance.image, options.inference_steps)
        audio_guidance = torch.linspace(*guidance.audio, options.inference_steps)
        scales = torch.tensor([options.dynamic_scale, options.dynamic_scale * options.motion_scale])
        scaled_buckets = buckets * scales
        window = sampler.window_frames
        starts = range(0, frames, window - sampler.window_overlap_frames)
        nothing = torch.zeros_like(embedding)
        with (
            self.network("unet") as unet,
            progress.stage("torch: denoising", options.inference_steps * len(starts)) as advance,
        ):
            for step, timestep in enumerate(scheduler.timesteps):
                total, count = torch.zeros_like(latents), torch.zeros(frames, 1, 1, 1)
                for start in starts:
                    scheduler._step_index = None  # windows repeat a step, which it would count
                    begin = start - step * sampler.window_shift_frames
                    indices = [(begin + offset) % frames for offset in range(window)]
                    current = latents[indices]
                    scaled = scheduler.scale_model_input(current, timestep)
                    repeated = reference.expand_as(scaled)
                    sample = torch.stack(
                        [
                            torch.cat([scaled, torch.zeros_like(repeated)], dim=1),
                            torch.cat([scaled, repeated], dim=1),
                            torch.cat([scaled, repeated], dim=1),
                        ]
                    )
                    means = scaled_buckets[indices].mean(dim=0)
                    ids = torch.cat([torch.tensor([sampler.frame_rate_id]), means]).repeat(3, 1)
                    silent = unconditional.expand(window, -1, -1)
                    speech = torch.cat([silent, silent, tokens[indices]])
                    picture = torch.cat([nothing, embedding, embedding])
                    picture = picture[:, None, None].expand(-1, window, -1, -1).flatten(0, 1)
                    neither, image, both = unet(sample, timestep, ids, picture, speech, face_mask)
                    guided = (
                        neither
                        + image_guidance[step] * (image - neither)
                        + audio_guidance[step] * (both - image)
                    )
                    stepped = scheduler.step(guided, timestep, current).prev_sample
                    for offset, index in enumerate(indices):
                        total[index] += stepped[offset]
                        count[index] += 1
                    advance()
                latents = total / count
        return latents

    def _decode(self, latents: Tensor, progress: Progress) -> Tensor:
        video = self.constants.video
        chunks = latents.split(video.decode_chunk_frames)
        with (
            self.network("vae_decoder") as decoder,
            progress.stage("torch: decoding", len(chunks)) as advance,
        ):
            images = _each(lambda chunk: decoder(chunk / video.latent_scale), chunks, advance)
        return (torch.cat(images) * 0.5 + 0.5).clamp(0, 1)

    def _interpolate(self, frames: Tensor, progress: Progress) -> Tensor:
        if self.constants.video.interpolation_factor != 2 or len(frames) < 2:
            return frames
        pairs = list(zip(frames[:-1], frames[1:], strict=True))
        with (
            self.network("frame_interpolator") as interpolator,
            progress.stage("torch: interpolation", len(pairs)) as advance,
        ):
            middles = _each(lambda pair: interpolator(pair[0][None], pair[1][None]), pairs, advance)
        result = torch.empty(2 * len(frames) - 1, *frames.shape[1:])
        result[0::2], result[1::2] = frames, torch.cat(middles)
        return result


def _each(function: Callable[[Any], Tensor], items: Any, advance: Callable[[], None]) -> list[Tensor]:
    results = []
    for item in items:
        results.append(function(item))
        advance()
    return results


def _pad(states: Tensor, padding: tuple[int, int]) -> Tensor:
    before, after = (states.new_zeros(count, *states.shape[1:]) for count in padding)
    return torch.cat([before, states, after])


def _quantize(frames: Tensor) -> np.ndarray:
    """(n, 3, H, W) in 0..1 -> (n, H, W, 3) uint8, truncated as published."""
    return (frames * 255).numpy().astype(np.uint8).transpose(0, 2, 3, 1)
