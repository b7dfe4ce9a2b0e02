"""The nine submodels as a table; every stage loops over it.

for submodel in SUBMODELS:
    module = submodel.build(checkpoint)
    inputs = submodel.example(measure(checkpoint), submodel.sizes[0])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from sonic.errors import InputError
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.checkpoint.tensor_files import load_strict
from sonic_convert.modules.audio import AudioEncoderStates, AudioToBucket, AudioToToken
from sonic_convert.modules.exportable_unet import ExportableUNet, folded_levels
from sonic_convert.modules.face import FaceDetector
from sonic_convert.modules.image import (
    ExportableVaeDecoder,
    ImageEncoder,
    VaeDecoder,
    VaeEncoder,
    build_vae,
)
from sonic_convert.modules.interpolator import FrameInterpolator
from sonic_convert.modules.unet import SonicUNet

Sizes = dict[str, int]


@dataclass(frozen=True)
class Dimensions:
    """Widths and counts of one checkpoint, from its configurations and tensor shapes."""

    audio_layers: int
    audio_width: int
    mel_bins: int
    mel_frames: int
    token_window: int
    bucket_window: int
    tokens: int
    context_width: int
    image_pixels: int
    latent_channels: int
    sample_channels: int
    levels: int


def measure(checkpoint: Checkpoint) -> Dimensions:
    """Read a checkpoint's dimensions.

    Raises:
        InputError: the audio head's token width is not what the UNet attends to.
    """
    constants = checkpoint.constants
    head = checkpoint.state_dict("audio2token", dtype=None)
    source = checkpoint.weights_file("audio2token")
    context_width = int(checkpoint.unet_config["cross_attention_dim"])
    rows = [head[name].shape[0] if name in head else 0 for name in ("proj3.weight", "norm.weight")]
    if rows[1] != context_width or rows[0] % context_width:
        raise InputError(
            f"{source}: 'norm.weight' has {rows[1]} and 'proj3.weight' {rows[0]} rows, but should have "
            f"{context_width} (the UNet's cross_attention_dim) and a multiple of it"
        )
    return Dimensions(
        audio_layers=int(checkpoint.audio_encoder_config["encoder_layers"]) + 1,
        audio_width=int(checkpoint.audio_encoder_config["d_model"]),
        mel_bins=constants.audio.mel_bins,
        mel_frames=constants.audio.window_samples // constants.audio.hop_samples,
        token_window=constants.audio.token_window_states,
        bucket_window=constants.audio.bucket_window_states,
        tokens=rows[0] // context_width,
        context_width=context_width,
        image_pixels=constants.portrait.image_encoder_pixels,
        latent_channels=constants.video.latent_channels,
        sample_channels=int(checkpoint.unet_config["in_channels"]),
        levels=len(checkpoint.unet_config["block_out_channels"]),
    )


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; a dynamic axis has a name in place of a size.

    Example inputs are drawn from a normal distribution, or uniformly from `bounds`.
    """

    name: str
    shape: tuple[int | str, ...]
    bounds: tuple[float, float] | None = None

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Axis number to name, as the exporter wants it."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}

    def draw(self, sizes: Sizes, generator: torch.Generator) -> Tensor:
        """A random example, float32."""
        shape = [sizes[size] if isinstance(size, str) else size for size in self.shape]
        if self.bounds is None:
            return torch.randn(shape, generator=generator)
        low, high = self.bounds
        return low + (high - low) * torch.rand(shape, generator=generator)


@dataclass(frozen=True)
class Submodel:
    """One row of the table.

    Attributes:
        name: the name in the bundle.
        component: the checkpoint's component that it is read from.
        build: makes the module whose forward is exported.
        inputs, outputs: the interface for a checkpoint's dimensions.
        sizes: sizes of the dynamic axes, first for tracing, then for the checks.
        int8: patterns of layer names with their precisions in the preset "int8"; the first that matches
            counts. Eight-bit arithmetic where the time goes, eight-bit weights where a clip needs one call.
        tolerance: largest relative L2 difference from PyTorch.
        work_terms: products of dynamic axes that its work grows with (see `sonic.bundle.work`), first the
            one that its memory grows with.
        work_sizes: sizes at which the work is counted, at least as many as terms.
        memory_sizes: two sizes at which the memory of a call is measured.
        published: makes the module with the published forward, where `build` rewrites it; its inputs
            may differ.
    """

    name: str
    component: str
    build: Callable[[Checkpoint], nn.Module]
    inputs: Callable[[Dimensions], tuple[TensorSpec, ...]]
    outputs: Callable[[Dimensions], tuple[TensorSpec, ...]]
    sizes: tuple[Sizes, ...] = ({}, {})
    int8: tuple[tuple[str, str], ...] = (("*", "weights8"),)
    tolerance: float = 1e-4
    work_terms: tuple[str, ...] = ("1",)
    work_sizes: tuple[Sizes, ...] = ({},)
    memory_sizes: tuple[Sizes, ...] = ({},)
    published: Callable[[Checkpoint], nn.Module] | None = None

    def example(self, dimensions: Dimensions, sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of the given axis sizes, by name."""
        generator = torch.Generator().manual_seed(seed)
        return {spec.name: spec.draw(sizes, generator) for spec in self.inputs(dimensions)}


def _audio_encoder(checkpoint: Checkpoint) -> nn.Module:
    name = "audio_encoder"
    return AudioEncoderStates.from_state_dict(
        checkpoint.audio_encoder_config, checkpoint.state_dict(name), _source(checkpoint, name)
    )


def _audio2token(checkpoint: Checkpoint) -> nn.Module:
    name, dimensions = "audio2token", measure(checkpoint)
    return AudioToToken.from_state_dict(
        checkpoint.state_dict(name),
        _source(checkpoint, name),
        window_states=dimensions.token_window,
        layers=dimensions.audio_layers,
        channels=dimensions.audio_width,
    )


def _audio2bucket(checkpoint: Checkpoint) -> nn.Module:
    name, dimensions = "audio2bucket", measure(checkpoint)
    return AudioToBucket.from_state_dict(
        checkpoint.state_dict(name),
        _source(checkpoint, name),
        window_states=dimensions.bucket_window,
        channels=dimensions.audio_width,
        image_channels=dimensions.context_width,
    )


def _image_encoder(checkpoint: Checkpoint) -> nn.Module:
    name = "image_encoder"
    return ImageEncoder.from_state_dict(
        checkpoint.image_encoder_config, checkpoint.state_dict(name), _source(checkpoint, name)
    )


def _vae(checkpoint: Checkpoint) -> AutoencoderKLTemporalDecoder:
    state = checkpoint.state_dict("vae")
    return build_vae(checkpoint.vae_config, state, _source(checkpoint, "vae"))


def build_unet(checkpoint: Checkpoint) -> SonicUNet:
    """The UNet with the published forward."""
    unet = SonicUNet.build(checkpoint.unet_config)
    load_strict(unet, checkpoint.state_dict("unet"), _source(checkpoint, "unet"))
    return unet.eval()


def _unet(checkpoint: Checkpoint) -> nn.Module:
    dimensions, portrait = measure(checkpoint), checkpoint.constants.portrait
    side = portrait.default_resolution_pixels // checkpoint.constants.video.latent_stride_pixels
    folded = folded_levels(side * side, dimensions.tokens, dimensions.levels)
    return ExportableUNet(build_unet(checkpoint), folded).eval()


def _frame_interpolator(checkpoint: Checkpoint) -> nn.Module:
    name = "frame_interpolator"
    return FrameInterpolator.from_state_dict(checkpoint.state_dict(name), _source(checkpoint, name))


def _face_detector(checkpoint: Checkpoint) -> nn.Module:
    return FaceDetector.load(checkpoint.weights_file("face_detector"))


def _source(checkpoint: Checkpoint, component: str) -> str:
    return str(checkpoint.weights_file(component))


def _unet_inputs(d: Dimensions) -> tuple[TensorSpec, ...]:
    masks = (
        TensorSpec(f"mask_{level}", (1, 1, f"height_{level}", f"width_{level}"), (0.0, 1.0))
        for level in range(d.levels)
    )
    return (
        TensorSpec("sample", ("batch", "frames", d.sample_channels, "height", "width")),
        TensorSpec("timestep", (1,), (-1.5, 1.6)),
        TensorSpec("added_time_ids", ("batch", 3), (0.0, 40.0)),
        TensorSpec("image_embedding", ("batch", d.context_width)),
        TensorSpec("audio_tokens", ("batch", "frames", d.tokens, d.context_width)),
        *masks,
    )


def unet_sizes(batch: int, frames: int, height: int, width: int) -> Sizes:
    """Sizes of the UNet's axes, those of its masks too."""
    levels = range(8)
    return {
        "batch": batch,
        "frames": frames,
        "height": height,
        "width": width,
        **{f"height_{level}": height >> level for level in levels},
        **{f"width_{level}": width >> level for level in levels},
    }


def picture_sizes(height: int, width: int, count: int = 1) -> Sizes:
    """Sizes of the axes of submodels that see pictures."""
    return {
        "count": count,
        "height": height,
        "width": width,
        **{f"height/{stride}": height // stride for stride in (8, 16, 32)},
        **{f"width/{stride}": width // stride for stride in (8, 16, 32)},
    }


_PICTURES = (picture_sizes(64, 96), picture_sizes(128, 64))
_PICTURES_FOR_MEMORY = (picture_sizes(128, 128), picture_sizes(256, 256))
_DETECTOR_PICTURES = (picture_sizes(416, 544), picture_sizes(480, 416))
_COUNTS: tuple[Sizes, ...] = ({"frames": 3}, {"frames": 25})

SUBMODELS: tuple[Submodel, ...] = (
    Submodel(
        "audio_encoder",
        "audio_encoder",
        _audio_encoder,
        lambda d: (TensorSpec("log_mel", (1, d.mel_bins, d.mel_frames), (-1.0, 1.0)),),
        lambda d: (TensorSpec("hidden_states", (1, d.mel_frames // 2, d.audio_layers, d.audio_width)),),
    ),
    Submodel(
        "audio2token",
        "audio2token",
        _audio2token,
        lambda d: (
            TensorSpec("audio_windows", (1, "frames", d.token_window, d.audio_layers, d.audio_width)),
        ),
        lambda d: (TensorSpec("audio_tokens", (1, "frames", d.tokens, d.context_width)),),
        _COUNTS,
        work_terms=("frames",),
        work_sizes=_COUNTS,
        memory_sizes=_COUNTS,
    ),
    Submodel(
        "audio2bucket",
        "audio2bucket",
        _audio2bucket,
        lambda d: (
            TensorSpec("audio_windows", (1, "frames", d.bucket_window, 1, d.audio_width)),
            TensorSpec("image_embedding", (1, d.context_width)),
        ),
        lambda d: (TensorSpec("buckets", (1, "frames", 2, 1)),),
        _COUNTS,
        work_terms=("frames",),
        work_sizes=_COUNTS,
        memory_sizes=_COUNTS,
    ),
    Submodel(
        "image_encoder",
        "image_encoder",
        _image_encoder,
        lambda d: (TensorSpec("pixel_values", (1, 3, d.image_pixels, d.image_pixels)),),
        lambda d: (TensorSpec("image_embedding", (1, d.context_width)),),
    ),
    Submodel(
        "vae_encoder",
        "vae",
        lambda checkpoint: VaeEncoder(_vae(checkpoint)).eval(),
        lambda d: (TensorSpec("image", (1, 3, "height", "width"), (-1.0, 1.0)),),
        lambda d: (TensorSpec("latent", (1, d.latent_channels, "height/8", "width/8")),),
        _PICTURES,
        work_terms=("height*width", "height*height*width*width"),
        work_sizes=_PICTURES,
        memory_sizes=_PICTURES_FOR_MEMORY,
    ),
    Submodel(
        "vae_decoder",
        "vae",
        lambda checkpoint: ExportableVaeDecoder(_vae(checkpoint)).eval(),
        lambda d: (TensorSpec("latents", ("count", d.latent_channels, "height", "width")),),
        lambda d: (TensorSpec("images", ("count", 3, "8*height", "8*width")),),
        (picture_sizes(8, 16, 3), picture_sizes(16, 8, 1)),
        work_terms=("count*height*width", "count*height*height*width*width"),
        work_sizes=(picture_sizes(8, 8, 2), picture_sizes(16, 8, 1)),
        memory_sizes=(picture_sizes(16, 16, 2), picture_sizes(32, 32, 2)),
        int8=(("*conv_in", "fp32"), ("*conv_out", "fp32"), ("*", "int8")),
        published=lambda checkpoint: VaeDecoder(_vae(checkpoint)).eval(),
    ),
    Submodel(
        "unet",
        "unet",
        _unet,
        _unet_inputs,
        lambda d: (TensorSpec("prediction", ("batch", "frames", d.latent_channels, "height", "width")),),
        (unet_sizes(3, 4, 8, 16), unet_sizes(1, 2, 16, 8)),
        work_terms=(
            "batch*frames*height*width",
            "batch*frames*height*height*width*width",  # attention over space
            "batch*frames*frames*height*width",  # attention over time
            "batch*frames",  # keys and values of the audio tokens
            "frames",  # embeddings of the positions in time
            "batch",
        ),
        work_sizes=(
            unet_sizes(1, 1, 8, 8),
            unet_sizes(1, 2, 8, 8),
            unet_sizes(2, 1, 8, 8),
            unet_sizes(1, 1, 16, 8),
            unet_sizes(1, 1, 16, 16),
            unet_sizes(1, 3, 8, 16),
            unet_sizes(2, 3, 8, 8),
            unet_sizes(1, 4, 8, 8),
        ),
        memory_sizes=(unet_sizes(1, 8, 16, 16), unet_sizes(1, 8, 32, 32)),
        int8=(
            ("unet.conv_in", "fp32"),
            ("unet.conv_out", "fp32"),
            ("unet.time_embedding.*", "fp32"),
            ("unet.add_embedding.*", "fp32"),
            ("*", "int8"),
        ),
        published=build_unet,
    ),
    Submodel(
        "frame_interpolator",
        "frame_interpolator",
        _frame_interpolator,
        lambda d: (
            TensorSpec("frame_0", ("count", 3, "height", "width"), (0.0, 1.0)),
            TensorSpec("frame_1", ("count", 3, "height", "width"), (0.0, 1.0)),
        ),
        lambda d: (TensorSpec("middle", ("count", 3, "height", "width")),),
        _PICTURES,
        work_terms=("count*height*width",),
        work_sizes=_PICTURES,
        memory_sizes=_PICTURES_FOR_MEMORY,
        int8=(("*", "fp32"),),
    ),
    Submodel(
        "face_detector",
        "face_detector",
        _face_detector,
        lambda d: (
            TensorSpec("image", (1, 3, "height", "width"), (0.0, 1.0)),
            *(
                TensorSpec(f"grid_{s}", (1, 1, f"height/{s}", f"width/{s}", 2), (0.0, 20.0))
                for s in (8, 16, 32)
            ),
        ),
        lambda d: (TensorSpec("predictions", (1, "boxes", 16)),),
        _DETECTOR_PICTURES,
        work_terms=("height*width",),
        work_sizes=_DETECTOR_PICTURES,
        memory_sizes=_DETECTOR_PICTURES,
        int8=(("*", "fp32"),),  # a box's edge decides where the mask's whole pixels begin
    ),
)
