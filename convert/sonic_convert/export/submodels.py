"""The nine submodels as a table: everything that differs between them is a column.

Example:

    for submodel in SUBMODELS:
        module = submodel.build(checkpoint)
        inputs = submodel.example(read_dimensions(checkpoint), submodel.sizes[0])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sonic.bundle.constants import Constants
from sonic.bundle.manifest import mask_input
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.export import builders
from sonic_convert.export.dimensions import Dimensions

Sizes = dict[str, int]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; a dynamic axis has a name in place of a size.

    Example inputs are drawn from a normal distribution, or uniformly within `bounds`.
    """

    name: str
    shape: tuple[int | str, ...]
    bounds: tuple[float, float] | None = None

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Axis number to name, as the exporter expects it."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}

    def draw(self, sizes: Sizes, generator: torch.Generator) -> Tensor:
        """A random example, float32."""
        shape = [sizes[size] if isinstance(size, str) else size for size in self.shape]
        if self.bounds is None:
            return torch.randn(shape, generator=generator)
        low, high = self.bounds
        return low + (high - low) * torch.rand(shape, generator=generator)


@dataclass(frozen=True)
class Programs:
    """The fixed shapes that a submodel is compiled for: a program for each.

    Attributes:
        sizes: of the dynamic axes, one entry for every program that videos of a height and a width in pixels
            need.
        independent_axis: axis whose entries are computed independently of each other, so that one program
            serves any number of them; "" where there is none.
    """

    sizes: Callable[[Constants, int, int], list[Sizes]]
    independent_axis: str = ""


def in_order(inputs: Mapping[str, Tensor], face_mask: Tensor) -> tuple[Tensor, ...]:
    """The arguments of a published forward that takes what the exported one takes."""
    return tuple(inputs.values())


@dataclass(frozen=True)
class Submodel:
    """One row of the table.

    Attributes:
        name: the name in the bundle.
        component: the component of the checkpoint that it is read from.
        build: makes the module whose forward is exported.
        inputs, outputs: the interface for a checkpoint's dimensions.
        sizes: sizes of the dynamic axes, first for tracing, then for the checks.
        int8: patterns of layer names with their precisions in the preset "int8"; the first that matches
            counts. Eight-bit arithmetic where most time is spent, eight-bit weights where one call is made.
        tolerance: largest relative L2 difference from PyTorch.
        work_terms: products of dynamic axes that its work grows with (see `sonic.bundle.work`), first the
            one that its memory grows with.
        work_sizes: sizes at which the work is counted, at least as many as terms.
        memory_sizes: two sizes at which the memory of a call is measured.
        programs: what it is compiled for; None leaves it to ONNX Runtime.
        published: makes the module with the published forward, where `build` rewrites it.
        published_arguments: of that module, from the exported graph's inputs by name and the face mask
            (1, 1, H, W) float32.
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
    programs: Programs | None = None
    published: Callable[[Checkpoint], nn.Module] | None = None
    published_arguments: Callable[[Mapping[str, Tensor], Tensor], tuple[Tensor, ...]] = in_order

    def build_published(self, checkpoint: Checkpoint) -> nn.Module:
        """The module with the published forward."""
        return (self.published or self.build)(checkpoint)

    def example(self, dimensions: Dimensions, sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of the given axis sizes, by name."""
        generator = torch.Generator().manual_seed(seed)
        return {spec.name: spec.draw(sizes, generator) for spec in self.inputs(dimensions)}


def _unet_inputs(d: Dimensions) -> tuple[TensorSpec, ...]:
    masks = (
        TensorSpec(mask_input(level), (1, 1, f"height_{level}", f"width_{level}"), (0.0, 1.0))
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
    """Sizes of the UNet's axes, including those of its masks."""
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
    """Sizes of the axes of submodels that work on pictures or their latents."""
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


def _latent_sides(constants: Constants, height: int, width: int) -> tuple[int, int]:
    stride = constants.video.latent_stride_pixels
    return height // stride, width // stride


def _decoder_programs(constants: Constants, height: int, width: int) -> list[Sizes]:
    sides = _latent_sides(constants, height, width)
    return [picture_sizes(*sides, count) for count in range(1, constants.video.decode_chunk_frames + 1)]


def _unet_programs(constants: Constants, height: int, width: int) -> list[Sizes]:
    # A call for every guidance branch of a window. Older bundles' golden vectors are a batch, which is split.
    sides = _latent_sides(constants, height, width)
    window = constants.sampler.window_frames
    return [unet_sizes(1, window, *sides)]


_ONE_PROGRAM = Programs(lambda constants, height, width: [{}])
_ONE_PICTURE = Programs(lambda constants, height, width: [picture_sizes(height, width)])
# 25 frames are one second of Sonic's own conditioning.
_FRAMES_IN_PARTS = Programs(lambda constants, height, width: [{"frames": 25}], "frames")

SUBMODELS: tuple[Submodel, ...] = (
    Submodel(
        "audio_encoder",
        "audio_encoder",
        builders.build_audio_encoder,
        lambda d: (TensorSpec("log_mel", (1, d.mel_bins, d.mel_frames), (-1.0, 1.0)),),
        lambda d: (TensorSpec("hidden_states", (1, d.mel_frames // 2, d.audio_layers, d.audio_width)),),
        programs=_ONE_PROGRAM,
    ),
    Submodel(
        "audio2token",
        "audio2token",
        builders.build_audio2token,
        lambda d: (
            TensorSpec("audio_windows", (1, "frames", d.token_window, d.audio_layers, d.audio_width)),
        ),
        lambda d: (TensorSpec("audio_tokens", (1, "frames", d.tokens, d.context_width)),),
        _COUNTS,
        work_terms=("frames",),
        work_sizes=_COUNTS,
        memory_sizes=_COUNTS,
        programs=_FRAMES_IN_PARTS,
    ),
    Submodel(
        "audio2bucket",
        "audio2bucket",
        builders.build_audio2bucket,
        lambda d: (
            TensorSpec("audio_windows", (1, "frames", d.bucket_window, 1, d.audio_width)),
            TensorSpec("image_embedding", (1, d.context_width)),
        ),
        lambda d: (TensorSpec("buckets", (1, "frames", 2, 1)),),
        _COUNTS,
        work_terms=("frames",),
        work_sizes=_COUNTS,
        memory_sizes=_COUNTS,
        programs=_FRAMES_IN_PARTS,
    ),
    Submodel(
        "image_encoder",
        "image_encoder",
        builders.build_image_encoder,
        lambda d: (TensorSpec("pixel_values", (1, 3, d.image_pixels, d.image_pixels)),),
        lambda d: (TensorSpec("image_embedding", (1, d.context_width)),),
        programs=_ONE_PROGRAM,
    ),
    Submodel(
        "vae_encoder",
        "vae",
        builders.build_vae_encoder,
        lambda d: (TensorSpec("image", (1, 3, "height", "width"), (-1.0, 1.0)),),
        lambda d: (TensorSpec("latent", (1, d.latent_channels, "height/8", "width/8")),),
        _PICTURES,
        work_terms=("height*width", "height*height*width*width"),
        work_sizes=_PICTURES,
        memory_sizes=_PICTURES_FOR_MEMORY,
        programs=_ONE_PICTURE,
    ),
    Submodel(
        "vae_decoder",
        "vae",
        builders.build_exportable_vae_decoder,
        lambda d: (TensorSpec("latents", ("count", d.latent_channels, "height", "width")),),
        lambda d: (TensorSpec("images", ("count", 3, "8*height", "8*width")),),
        (picture_sizes(8, 16, 3), picture_sizes(16, 8, 1)),
        work_terms=("count*height*width", "count*height*height*width*width"),
        work_sizes=(picture_sizes(8, 8, 2), picture_sizes(16, 8, 1)),
        memory_sizes=(picture_sizes(16, 16, 2), picture_sizes(32, 32, 2)),
        int8=(("*conv_in", "fp32"), ("*conv_out", "fp32"), ("*", "int8")),
        programs=Programs(_decoder_programs),
        published=builders.build_vae_decoder,
    ),
    Submodel(
        "unet",
        "unet",
        builders.build_exportable_unet,
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
        programs=Programs(_unet_programs, "batch"),
        published=builders.build_unet,
        published_arguments=builders.published_unet_arguments,
    ),
    Submodel(
        "frame_interpolator",
        "frame_interpolator",
        builders.build_frame_interpolator,
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
        programs=_ONE_PICTURE,
    ),
    Submodel(
        "face_detector",
        "face_detector",
        builders.build_face_detector,
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
        # Not compiled: its input has the proportions of the portrait, and it runs once for a clip.
    ),
)


def find_submodel(name: str) -> Submodel:
    """The row of the table with that name."""
    return next(submodel for submodel in SUBMODELS if submodel.name == name)
