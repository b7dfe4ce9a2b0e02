"""Layers that compute what diffusers' do in fewer operations; every rewrite is exact except for rounding.

Each layer is made from one of diffusers' and shares the weights that it leaves unchanged.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import AlphaBlender, SpatioTemporalResBlock
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Grid:
    """Sizes at one level of a network.

    Layers reshape by these and never by the sizes of computed tensors, so that the exported graph has one
    constant or shape for each level and not one for each layer.
    """

    batch: int
    frames: int
    height: int
    width: int

    @property
    def positions(self) -> int:
        """Positions in one frame."""
        return self.height * self.width


def group_norm(norm: nn.GroupNorm, hidden: Tensor, *sizes: int, affine: bool = True) -> Tensor:
    """`norm` of (sizes[0], channels, *sizes[1:]), with or without its gain and offset."""
    # The exporter needs the gains and offsets of the groups, which are one and zero.
    ones, zeros = hidden.new_ones(norm.num_groups), hidden.new_zeros(norm.num_groups)
    grouped = hidden.reshape(sizes[0], norm.num_groups, -1)
    normed = F.instance_norm(grouped, weight=ones, bias=zeros, eps=norm.eps)
    normed = normed.reshape(sizes[0], norm.num_channels, *sizes[1:])
    if not affine:
        return normed
    shape = (1, -1) + (1,) * (len(sizes) - 1)
    return normed * norm.weight.reshape(shape) + norm.bias.reshape(shape)


#: Networks double their channels where they halve the picture: layers this wide work on 8 x 8 positions or
#: fewer for a video of 256 pixels, and on 16 x 16 for one of 512.
_SMALL_PICTURE_CHANNELS = 1024


def convolve_frames(convolution: nn.Conv2d, hidden: Tensor, grid: Grid) -> Tensor:
    """A 3 x 3 convolution of every frame; small pictures of one batch item are laid side by side in a row.

    A column of zeros between two frames is the padding of both, so the numbers are the same. Kernels compute
    several columns at once: in ONNX Runtime (x86), a row of eight 4 x 4 pictures takes 0.56 of the time of
    eight separate ones, a row of 8 x 8 pictures 0.9, and a row of 16 x 16 pictures the same time.

    Args:
        convolution: 3 x 3, padded by one.
        hidden: (batch * frames, channels, h, w).
        grid: the sizes.

    Returns:
        (batch * frames, output channels, h, w).
    """
    if convolution.out_channels < _SMALL_PICTURE_CHANNELS:
        return convolution(hidden)
    frames = hidden.reshape(grid.batch, grid.frames, convolution.in_channels, grid.height, grid.width)
    row = F.pad(frames, (0, 1)).permute(0, 2, 3, 1, 4)
    row = convolution(row.reshape(grid.batch, convolution.in_channels, grid.height, -1))
    row = row.reshape(grid.batch, convolution.out_channels, grid.height, grid.frames, -1)[..., :-1]
    return row.permute(0, 3, 1, 2, 4).reshape(
        grid.batch * grid.frames, convolution.out_channels, grid.height, grid.width
    )


class PhaseUpsample(nn.Module):
    """Nearest-neighbour upsampling by two and a 3 x 3 convolution, computed on the small picture.

    Each of the four phases of the large picture (even and odd rows and columns) sees 2 x 2 pixels of the
    small one, weighted with sums of the 3 x 3 weights: 16 multiplications per pixel in place of 36.
    """

    def __init__(self, upsample: Upsample2D) -> None:
        super().__init__()
        convolution = upsample.conv
        if not isinstance(convolution, nn.Conv2d) or convolution.kernel_size != (3, 3):
            raise ValueError("only an upsampling with a 3 x 3 convolution can be rewritten")
        self.bias = convolution.bias
        for row, of_row in enumerate(_halves(convolution.weight.detach(), 2)):
            for column, of_both in enumerate(_halves(of_row, 3)):
                self.register_buffer(f"weight_{row}{column}", of_both.contiguous())

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels, 2 h, 2 w)."""
        phases = [
            F.conv2d(
                F.pad(hidden, (1 - column, column, 1 - row, row)),
                self.get_buffer(f"weight_{row}{column}"),
                self.bias,
            )
            for row in (0, 1)
            for column in (0, 1)
        ]
        return F.pixel_shuffle(torch.stack(phases, dim=2).flatten(1, 2), 2)


def _halves(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The two taps that an even and an odd row (or column) of the large picture has on the small one."""
    before, at, after = weight.unbind(axis)
    return torch.stack([before, at + after], axis), torch.stack([before + at, after], axis)


class SplitGEGLU(nn.Module):
    """A GEGLU with one linear map for the values and one for the gates, so that no result has to be split."""

    def __init__(self, geglu: GEGLU) -> None:
        super().__init__()
        weights = geglu.proj.weight.detach().chunk(2)
        biases = geglu.proj.bias.detach().chunk(2)
        self.value, self.gate = (linear(*parts) for parts in zip(weights, biases, strict=True))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., channels) -> (..., inner channels)."""
        return self.value(hidden) * F.gelu(self.gate(hidden))


def in_chunks(
    norm: nn.Module, layer: nn.Module, hidden: Tensor, sizes: tuple[int, int], chunks: int
) -> Tensor:
    """A norm and a layer that work position by position, on one chunk of the positions after another.

    The layer's intermediate tensors then need only a fraction of the memory.

    Args:
        norm, layer: (1, n, channels) -> the same sizes.
        hidden: (*sizes, channels), for sizes whose product is a multiple of `chunks`.
        sizes: the first two, from the sizes of the network's inputs.
        chunks: their number; 1 runs both on the whole.
    """
    if chunks == 1:
        return layer(norm(hidden))
    split = hidden.reshape(chunks, -1, hidden.shape[-1]).split(1)
    return torch.cat([layer(norm(chunk)) for chunk in split]).reshape(*sizes, -1)


class RewrittenResnet(nn.Module):
    """A residual block over space, then one over time; the learned blend is folded into the last weights.

    ``a s + (1 - a) (s + r) = s + (1 - a) r``, where s is the result over space and r the residual over
    time. Convolutions over three frames run as 3 x 1 convolutions of (frames, positions). The shortcut of
    a skip connection is the sum of two, so that each half can be quantized with its own range.
    """

    def __init__(self, block: SpatioTemporalResBlock) -> None:
        super().__init__()
        space, time = block.spatial_res_block, block.temporal_res_block
        changed = space.upsample, space.downsample, time.conv_shortcut
        if any(part is not None for part in changed) or space.output_scale_factor != 1.0:
            raise ValueError("only residual blocks that keep the size can be rewritten")
        self.space, self.time = space, time
        self.shortcut_below: nn.Conv2d | None = None
        self.shortcut_skip: nn.Conv2d | None = None
        share = 1 - spatial_share(block.time_mixer)
        self.time_conv1 = over_frames(time.conv1)
        self.time_conv2 = over_frames(time.conv2, share)

    def split_shortcut(self, skip_channels: int) -> None:
        """Split the shortcut in two: for what comes from below, and for the channels of a skip connection."""
        convolution = self.space.conv_shortcut
        if convolution is None or convolution.kernel_size != (1, 1):
            raise ValueError("only 1 x 1 shortcuts can be split")
        below = convolution.in_channels - skip_channels
        self.shortcut_below, self.shortcut_skip = split_inputs(convolution, below)
        self.space.conv_shortcut = None

    def _shortcut(self, hidden: Tensor, skip: Tensor | None) -> Tensor:
        if skip is not None:
            assert self.shortcut_below is not None and self.shortcut_skip is not None
            return self.shortcut_below(hidden) + self.shortcut_skip(skip)
        return hidden if self.space.conv_shortcut is None else self.space.conv_shortcut(hidden)

    def forward(
        self,
        hidden: Tensor,
        grid: Grid,
        emb: Tensor | None = None,
        emb_of_frames: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """(batch * frames, channels, h, w) -> the same sizes.

        `emb` (batch, width) is the activated embedding of the step and `emb_of_frames`
        (batch * frames, width) the same for every frame, for blocks that have one; the channels of `skip`
        follow those of `hidden`.
        """
        shortcut = self._shortcut(hidden, skip)
        if skip is not None:
            hidden = torch.cat([hidden, skip], dim=1)
        space, time = self.space, self.time
        count = grid.batch * grid.frames
        sizes = (count, grid.height, grid.width)
        x = convolve_frames(space.conv1, F.silu(group_norm(space.norm1, hidden, *sizes)), grid)
        if emb_of_frames is not None:
            x = x + space.time_emb_proj(emb_of_frames)[:, :, None, None]
        x = convolve_frames(space.conv2, F.silu(group_norm(space.norm2, x, *sizes)), grid)
        spatial = x + shortcut

        channels = space.conv2.out_channels
        spatial = spatial.reshape(grid.batch, grid.frames, channels, grid.positions).transpose(1, 2)
        sizes = (grid.batch, grid.frames, grid.positions)
        x = self.time_conv1(F.silu(group_norm(time.norm1, spatial, *sizes)))
        if emb is not None:
            x = x + time.time_emb_proj(emb)[:, :, None, None]
        x = self.time_conv2(F.silu(group_norm(time.norm2, x, *sizes)))
        blended = (spatial + x).transpose(1, 2)
        return blended.reshape(count, channels, grid.height, grid.width)


def split_inputs(convolution: nn.Conv2d, below: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A 1 x 1 convolution as two whose results add up: of the first `below` channels, and of the rest."""
    weight, bias = convolution.weight.detach(), convolution.bias
    made: list[nn.Conv2d] = []
    for part in (weight[:, :below], weight[:, below:]):
        half = nn.Conv2d(part.shape[1], part.shape[0], 1, bias=bias is not None and not made, device="meta")
        half.weight = nn.Parameter(part, requires_grad=False)
        if half.bias is not None:
            half.bias = bias
        made.append(half)
    return made[0], made[1]


def spatial_share(mixer: AlphaBlender) -> Tensor:
    """The weight of the result over space in a learned blend (no frame is image-only)."""
    share = torch.sigmoid(mixer.mix_factor.detach())
    return 1 - share if mixer.switch_spatial_to_temporal_mix else share


def over_frames(convolution: nn.Conv3d, scale: Tensor | float = 1.0) -> nn.Conv2d:
    """A (3, 1, 1) convolution as a 3 x 1 convolution of (frames, positions), its result times `scale`."""
    made = nn.Conv2d(convolution.in_channels, convolution.out_channels, (3, 1), padding=(1, 0), device="meta")
    assert convolution.bias is not None
    made.weight = nn.Parameter(convolution.weight.detach()[..., 0] * scale, requires_grad=False)
    made.bias = nn.Parameter(convolution.bias.detach() * scale, requires_grad=False)
    return made


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear map with the given weights (out, in) and bias (out)."""
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = nn.Parameter(bias, requires_grad=False)
    return made


def with_shared_weights(module: AnyModule) -> AnyModule:
    """A copy of a module whose layers can be replaced; it shares the weights."""
    shared = {id(tensor): tensor for tensor in module.parameters()}
    return copy.deepcopy(module, shared)  # type: ignore[arg-type]


def rewrite_convolutions(block: nn.Module) -> None:
    """Replace the residual blocks and the upsampling of a down, middle or up block, in place."""
    block.resnets = nn.ModuleList(map(RewrittenResnet, block.resnets))  # type: ignore[arg-type]
    if getattr(block, "upsamplers", None):
        block.upsamplers = nn.ModuleList(map(PhaseUpsample, block.upsamplers))  # type: ignore[arg-type]
