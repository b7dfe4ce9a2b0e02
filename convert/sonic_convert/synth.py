"""Random checkpoints in exactly the official layout, for tests, benchmarks and examples.

The published weights are not free to pass on and take gigabytes; a synthesized checkpoint goes
through the same code, and at the published dimensions it costs the same work.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    WhisperConfig,
    WhisperModel,
)

from sonic.constants import Constants
from sonic.errors import InputError, OutputError
from sonic_convert.modules.audio import BUCKETS_PER_FRAME, AudioToBucket, AudioToToken
from sonic_convert.modules.interpolator import FrameInterpolator
from sonic_convert.synth_dimensions import (
    IMAGE_PREPROCESSOR_CONFIG,
    PUBLISHED,
    SCHEDULER_CONFIG,
    SMALL,
    WHISPER_PREPROCESSOR_CONFIG,
    SynthDimensions,
)
from sonic_convert.synth_face import write_face_detector
from sonic_convert.synth_values import random_state, uniform

LICENSE = "CC0-1.0 (random weights)"
_SIZES = {"small": SMALL, "published": PUBLISHED}
_DTYPES = {"float16": torch.float16, "float32": torch.float32}
_ADAPTER_KEY_GAIN = 2.0  # peaked attention over the audio tokens
_ADAPTER_VALUE_GAIN = 1.5
_State = dict[str, torch.Tensor]
_VIDEO_MODEL = "stable-video-diffusion-img2vid-xt"


def synthesize(
    out: Path,
    size: Literal["small", "published"] | SynthDimensions = "small",
    seed: int = 0,
    dtype: Literal["float16", "float32"] = "float16",
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint of random weights; the same arguments give the same bytes.

    Args:
        out: the folder to create. It appears complete or not at all.
        size: "small", "published" (7 GB as float16) or dimensions of one's own.
        seed: chooses the weights.
        dtype: "float16" writes diffusers' `fp16` file names, "float32" the plain ones.
        overwrite: replace `out` where it is already there and not empty.

    Returns:
        `out`.

    Raises:
        InputError: an argument is not one of these, or `out` is not empty.
        OutputError: the folder cannot be written.
    """
    dimensions = _SIZES.get(size) if isinstance(size, str) else size
    if dimensions is None:
        raise InputError(f"the size is {size!r}, but should be one of {sorted(_SIZES)}")
    if dtype not in _DTYPES:
        raise InputError(f"the dtype is {dtype!r}, but should be one of {sorted(_DTYPES)}")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: this is a file, but should be a new or empty folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out}: the folder is not empty; it should be a new or empty one")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            made = Path(scratch) / out.name
            _write(made, dimensions, seed, dtype)
            if out.is_dir():
                # Aside first: the scratch folder takes it along, and `out` is never half gone.
                out.rename(Path(scratch) / "replaced")
            made.rename(out)
    except OSError as error:
        raise OutputError(f"{out}: the checkpoint cannot be written ({error})") from error
    return out


def _write(root: Path, dimensions: SynthDimensions, seed: int, dtype: str) -> None:
    kind = _DTYPES[dtype]
    variant = ".fp16" if dtype == "float16" else ""

    def tensors(module: nn.Module, component: str, generator_seed: int = seed) -> _State:
        return {
            name: values.to(kind).contiguous()
            for name, values in random_state(module, generator_seed, component)
        }

    video_model = root / _VIDEO_MODEL
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel.from_config(dimensions.unet_config())
    state = tensors(unet, "unet")
    state.update((name, value.to(kind)) for name, value in _adapters(unet, seed))
    _save_pickle(state, root / "Sonic/unet.pth")
    del state
    # Stable Video Diffusion's own weights differ from Sonic's: who reads the wrong file finds out.
    _save_diffusers(
        tensors(unet, "unet", seed + 1), dimensions.unet_config(), video_model / "unet", variant
    )
    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder.from_config(dimensions.vae_config())
        image = CLIPVisionModelWithProjection(CLIPVisionConfig(**dimensions.image_encoder_config()))
        whisper = WhisperModel(WhisperConfig(**dimensions.whisper_config()))
    _save_diffusers(tensors(vae, "vae"), dimensions.vae_config(), video_model / "vae", variant)
    image_config = dimensions.image_encoder_config() | {"torch_dtype": dtype}
    _save_json(image_config, video_model / "image_encoder/config.json")
    _save_safetensors(
        tensors(image, "image_encoder"),
        video_model / f"image_encoder/model{variant}.safetensors",
    )
    _save_json(SCHEDULER_CONFIG, video_model / "scheduler/scheduler_config.json")
    _save_json(
        IMAGE_PREPROCESSOR_CONFIG, video_model / "feature_extractor/preprocessor_config.json"
    )

    whisper_state = tensors(whisper, "audio_encoder")
    _save_safetensors(
        {f"model.{name}": value for name, value in whisper_state.items()},
        root / "whisper-tiny/model.safetensors",
    )
    _save_json(
        dimensions.whisper_config() | {"torch_dtype": dtype}, root / "whisper-tiny/config.json"
    )
    _save_json(WHISPER_PREPROCESSOR_CONFIG, root / "whisper-tiny/preprocessor_config.json")

    token_head, bucket_head = _audio_heads(dimensions)
    _save_pickle(tensors(token_head, "audio2token"), root / "Sonic/audio2token.pth")
    _save_pickle(tensors(bucket_head, "audio2bucket"), root / "Sonic/audio2bucket.pth")
    with torch.device("meta"):
        interpolator = FrameInterpolator(dimensions.interpolator_channels)
    flow_state = tensors(interpolator, "frame_interpolator")
    _save_pickle(
        {f"module.{name}": value for name, value in flow_state.items()},
        root / "RIFE/flownet.pkl",
    )
    write_face_detector(root / "yoloface_v5m.pt")
    _save_json(_own_config(dimensions), root / "Sonic/config.json")


def _adapters(unet: nn.Module, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Keys and values of the audio attention of every layer that attends to a context."""
    for path, module in unet.named_modules():
        if not path.endswith(".attn2"):
            continue
        shape = tuple(module.get_parameter("to_k.weight").shape)
        for part, gain in (("to_k_ip", _ADAPTER_KEY_GAIN), ("to_v_ip", _ADAPTER_VALUE_GAIN)):
            name = f"{path}.processor.{part}.0.weight"
            yield name, uniform(shape, gain * shape[1] ** -0.5, seed, "unet", name)


def _audio_heads(dimensions: SynthDimensions) -> tuple[AudioToToken, AudioToBucket]:
    audio = Constants().audio
    with torch.device("meta"):
        return (
            AudioToToken(
                audio.token_window_states,
                dimensions.whisper_layers + 1,
                dimensions.whisper_width,
                dimensions.audio_hidden,
                dimensions.audio_tokens,
                dimensions.token_width,
            ),
            AudioToBucket(
                audio.bucket_window_states,
                dimensions.whisper_width,
                dimensions.token_width,
                dimensions.audio_hidden,
                BUCKETS_PER_FRAME,
            ),
        )


def _own_config(dimensions: SynthDimensions) -> dict[str, Any]:
    config: dict[str, Any] = {"license": LICENSE, "name": f"sonic-{dimensions.name}-random"}
    resolution = dimensions.default_resolution_pixels
    if resolution != Constants().portrait.default_resolution_pixels:
        config["constants"] = {"portrait": {"default_resolution_pixels": resolution}}
    return config


def _save_diffusers(state: _State, config: dict[str, Any], folder: Path, variant: str) -> None:
    _save_json(config, folder / "config.json")
    _save_safetensors(state, folder / f"diffusion_pytorch_model{variant}.safetensors")


def _save_safetensors(state: _State, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"format": "pt"})


def _save_pickle(state: _State, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


def _save_json(values: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
