"""Random checkpoints in exactly the official layout, for tests, benchmarks and examples.

The published weights may not be passed on freely and take gigabytes; a synthesized checkpoint goes
through the same code, and at the published dimensions it takes the same work.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    WhisperConfig,
    WhisperModel,
)

from sonic.bundle.constants import Constants
from sonic.errors import InputError
from sonic_convert.modules.audio import BUCKETS_PER_FRAME, AudioToBucket, AudioToToken
from sonic_convert.modules.interpolator import FrameInterpolator
from sonic_convert.synth.checkpoint_writer import CheckpointWriter, Dtype, State, create_checkpoint
from sonic_convert.synth.dimensions import PUBLISHED, SMALL, SynthDimensions
from sonic_convert.synth.face import write_face_detector
from sonic_convert.synth.values import random_state, uniform

LICENSE = "CC0-1.0 (random weights)"
_SIZES = {"small": SMALL, "published": PUBLISHED}
_ADAPTER_KEY_GAIN = 2.0  # peaked attention over the audio tokens
_ADAPTER_VALUE_GAIN = 1.5


def synthesize(
    out: Path,
    size: Literal["small", "published"] | SynthDimensions = "small",
    seed: int = 0,
    dtype: Dtype = "float16",
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint of random weights; the same arguments give the same bytes.

    Args:
        out: the folder to create. It appears complete or not at all.
        size: "small", "published" (7 GB as float16) or custom dimensions.
        seed: chooses the weights.
        dtype: "float16" writes diffusers' `fp16` file names, "float32" the plain ones.
        overwrite: replace `out` where it is already there and not empty.

    Returns:
        `out`.

    Raises:
        InputError: an argument has an unknown value, or `out` is not empty.
        OutputError: the folder cannot be written.
    """
    dimensions = _SIZES.get(size) if isinstance(size, str) else size
    if dimensions is None:
        raise InputError(f"the size is {size!r}, but should be one of {sorted(_SIZES)}")
    return create_checkpoint(out, dtype, overwrite, lambda writer: _write(writer, dimensions, seed))


def _write(writer: CheckpointWriter, dimensions: SynthDimensions, seed: int) -> None:
    def tensors(module: nn.Module, component: str, generator_seed: int = seed) -> State:
        # Cast one by one: at the published size all float32 tensors would not fit into memory.
        return {
            name: values.to(writer.dtype) for name, values in random_state(module, generator_seed, component)
        }

    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel.from_config(dimensions.unet_config())
        vae = AutoencoderKLTemporalDecoder.from_config(dimensions.vae_config())
        image = CLIPVisionModelWithProjection(CLIPVisionConfig(**dimensions.image_encoder_config()))
        whisper = WhisperModel(WhisperConfig(**dimensions.whisper_config()))
        interpolator = FrameInterpolator(dimensions.interpolator_channels)
        tokens, buckets = token_head(dimensions), bucket_head(dimensions)
    state = tensors(unet, "unet")
    state.update((name, value.to(writer.dtype)) for name, value in _adapters(unet, seed))
    writer.unet(state)
    del state
    # Stable Video Diffusion's own weights differ from Sonic's, so that reading the wrong file is noticed.
    writer.video_unet(tensors(unet, "unet", seed + 1))
    writer.vae(tensors(vae, "vae"))
    writer.image_encoder(tensors(image, "image_encoder"))
    writer.audio_encoder(tensors(whisper, "audio_encoder"))
    writer.audio_heads(tensors(tokens, "audio2token"), tensors(buckets, "audio2bucket"))
    writer.frame_interpolator(tensors(interpolator, "frame_interpolator"))
    writer.face_detector(write_face_detector)
    writer.configs(dimensions, _own_config(dimensions))


def _adapters(unet: nn.Module, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Keys and values of the audio attention of every layer that attends to a context."""
    for path, module in unet.named_modules():
        if not path.endswith(".attn2"):
            continue
        shape = tuple(module.get_parameter("to_k.weight").shape)
        for part, gain in (("to_k_ip", _ADAPTER_KEY_GAIN), ("to_v_ip", _ADAPTER_VALUE_GAIN)):
            name = f"{path}.processor.{part}.0.weight"
            yield name, uniform(shape, gain * shape[1] ** -0.5, seed, "unet", name)


def token_head(dimensions: SynthDimensions) -> AudioToToken:
    """audio2token of these dimensions."""
    return AudioToToken(
        Constants().audio.token_window_states,
        dimensions.whisper_layers + 1,
        dimensions.whisper_width,
        dimensions.audio_hidden,
        dimensions.audio_tokens,
        dimensions.token_width,
    )


def bucket_head(dimensions: SynthDimensions) -> AudioToBucket:
    """audio2bucket of these dimensions."""
    return AudioToBucket(
        Constants().audio.bucket_window_states,
        dimensions.whisper_width,
        dimensions.token_width,
        dimensions.audio_hidden,
        BUCKETS_PER_FRAME,
    )


def _own_config(dimensions: SynthDimensions) -> dict[str, Any]:
    config: dict[str, Any] = {"license": LICENSE, "name": f"sonic-{dimensions.name}-random"}
    resolution = dimensions.default_resolution_pixels
    if resolution != Constants().portrait.default_resolution_pixels:
        config["constants"] = {"portrait": {"default_resolution_pixels": resolution}}
    return config
