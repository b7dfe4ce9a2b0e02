"""What a clip will do, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sonic.bundle.constants import Constants
from sonic.diffusion.guidance import guidance_scales, needed_branches
from sonic.diffusion.plan import window_indices
from sonic.media.face import detector_size
from sonic.options import BALANCED, RunOptions


@dataclass(frozen=True)
class ClipSize:
    """How long and how large a clip is; pixels are multiples of 64."""

    seconds: float
    width: int
    height: int
    steps: int

    def generated_frames(self, constants: Constants) -> int:
        """Frames that are denoised."""
        return max(1, int(self.seconds * constants.video.generated_frame_rate_hz))

    def shown_frames(self, constants: Constants) -> int:
        """Frames of the video."""
        return max(1, round(self.seconds * constants.video.frame_rate_hz))


def submodel_calls(
    constants: Constants, clip: ClipSize, run: RunOptions = BALANCED
) -> Iterator[tuple[str, dict[str, int], int]]:
    """Every kind of call that a clip needs: submodel, sizes of its dynamic axes, how often."""
    video, audio = constants.video, constants.audio
    frames = clip.generated_frames(constants)
    height, width = (side // video.latent_stride_pixels for side in (clip.height, clip.width))
    picture = {"height": clip.height, "width": clip.width, "count": 1}
    detector_height, detector_width = detector_size(clip.height, clip.width, constants.face)
    yield "face_detector", {"height": detector_height, "width": detector_width}, 1
    yield "image_encoder", {}, 1
    yield "vae_encoder", picture, 1
    window_seconds = audio.window_samples / audio.sample_rate_hz
    yield "audio_encoder", {}, int(np.ceil(clip.seconds / window_seconds))
    for name in ("audio2token", "audio2bucket"):
        yield name, {"frames": frames}, 1
    window = {"frames": constants.sampler.window_frames, "height": height, "width": width}
    windows = len(window_indices(frames, 0, constants.sampler))
    scales = (constants.sampler.image_guidance, constants.sampler.audio_guidance)
    for image_scale, audio_scale in zip(*(guidance_scales(s, clip.steps) for s in scales), strict=True):
        needed = len(needed_branches(image_scale, audio_scale))
        whole, rest = divmod(needed, run.branches_at_once)
        if whole:
            yield "unet", window | {"batch": run.branches_at_once}, windows * whole
        if rest:
            yield "unet", window | {"batch": rest}, windows
    whole, rest = divmod(frames, video.decode_chunk_frames)
    latent = {"height": height, "width": width}
    if whole:
        yield "vae_decoder", latent | {"count": video.decode_chunk_frames}, whole
    if rest:
        yield "vae_decoder", latent | {"count": rest}, 1
    if video.interpolation_factor == 2 and frames > 1:
        yield "frame_interpolator", picture, frames - 1
