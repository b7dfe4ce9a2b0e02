"""The denoiser as it is exported: the published numbers in fewer operations, with dynamic sizes.

Beside the rewrites of :mod:`sonic_convert.modules.rewrites`, all exact except for rounding:

- a softmax over the single image token is one, so the image half of a cross-attention is one vector
  for each item of the batch, which is added after the output projection;
- the context over time is the same for every position, so that all of an item's positions are one
  sequence of queries;
- the face mask at each level is an input, since it is constant for a clip;
- where the queries are many, the projections of queries and outputs are folded into the few audio tokens'
  keys and values (:func:`attend_to_tokens`);
- convolutions of small pictures take all frames of an item in one row
  (:func:`sonic_convert.modules.rewrites.convolve_frames`);
- gains and offsets of the norm before a linear map are folded into it, and so are the weights of the blend
  of space and time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from sonic_convert.modules.rewrites import (
    Grid,
    SplitGEGLU,
    group_norm,
    in_chunks,
    linear,
    rewrite_convolutions,
    spatial_share,
    with_shared_weights,
)
from sonic_convert.modules.unet import (
    SonicUNet,
    attend,
    audio_keys_values,
    self_attention,
    time_embedding,
    walk,
)

# The memory of a call with many frames peaks in the feed-forward layers of the finest level, which have four
# times as many inner channels. Its positions are a multiple of 64, as sides are multiples of 8 latents.
_FINEST_CHUNKS = 2


class ExportableUNet(nn.Module):
    """Computes what :class:`SonicUNet` does, for a graph in which all sizes are dynamic.

    Args:
        unet: shares its unchanged weights, and stays as it is.
        folded_levels: the finest levels, at which a frame has many more positions than audio tokens,
            so that it pays to fold the query and output projections into the tokens.
    """

    def __init__(self, unet: SonicUNet, folded_levels: int = 0) -> None:
        super().__init__()
        self.unet = with_shared_weights(unet)
        down, up = self.unet.down_blocks, self.unet.up_blocks
        levels = [*enumerate(down), (len(down) - 1, self.unet.mid_block)]
        levels += [(len(up) - 1 - index, block) for index, block in enumerate(up)]
        for level, block in levels:
            rewrite_convolutions(block)
            if getattr(block, "attentions", None) is not None:
                block.attentions = nn.ModuleList(
                    RewrittenTransformer(attention, level < folded_levels, 1 if level else _FINEST_CHUNKS)
                    for attention in block.attentions
                )

        skips = _skip_channels(self.unet)
        for block in up:
            for resnet in block.resnets:
                resnet.split_shortcut(skips.pop())

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        added_time_ids: Tensor,
        image_embedding: Tensor,
        audio_tokens: Tensor,
        *masks: Tensor,
    ) -> Tensor:
        """Predict v; shapes as in :class:`SonicUNet`, except for the context.

        Args:
            sample: (batch, frames, 8, h, w).
            timestep: (1,).
            added_time_ids: (batch, 3).
            image_embedding: (batch, context width), the same for all frames.
            audio_tokens: (batch, frames, tokens, context width).
            masks: one (1, 1, h_level, w_level) for every level of the UNet, the finest first.
        """
        batch, frames = sample.shape[:2]
        context = Context(
            image_embedding,
            audio_tokens.flatten(0, 1),
            audio_tokens.mean(dim=1),
            tuple(mask.reshape(1, -1, 1) for mask in masks),
        )
        emb = F.silu(time_embedding(self.unet, timestep, added_time_ids))
        layers = RewrittenLayers(
            emb,
            emb[:, None].expand(-1, frames, -1).reshape(batch * frames, -1),
            context,
            tuple(Grid(batch, frames, *mask.shape[2:]) for mask in masks),
        )
        hidden = walk(self.unet, sample.flatten(0, 1), layers)
        return hidden.reshape(batch, frames, -1, *sample.shape[3:])


def _skip_channels(unet: SonicUNet) -> list[int]:
    """Channels of every skip connection, in the order in which they are made."""
    channels = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        made = [resnet.space.conv2.out_channels for resnet in block.resnets]
        channels += made + [made[-1]] * len(block.downsamplers or ())
    return channels


@dataclass(frozen=True)
class Context:
    """What the cross-attentions attend to.

    Attributes:
        image_embedding: (batch, context width).
        audio_tokens: (batch * frames, tokens, context width).
        mean_tokens: (batch, tokens, context width), their mean over the frames.
        masks: one (1, positions, 1) for every level.
    """

    image_embedding: Tensor
    audio_tokens: Tensor
    mean_tokens: Tensor
    masks: tuple[Tensor, ...]


@dataclass(frozen=True)
class RewrittenLayers:
    """Calls the rewritten layers.

    Attributes:
        emb: (batch, width), the activated embedding of the step.
        emb_of_frames: (batch * frames, width), the same for every frame.
        grids: one for every level.
    """

    emb: Tensor
    emb_of_frames: Tensor
    context: Context
    grids: tuple[Grid, ...]

    def resnet(self, block: nn.Module, hidden: Tensor, level: int, skip: Tensor | None = None) -> Tensor:
        return block(hidden, self.grids[level], self.emb, self.emb_of_frames, skip)

    def transformer(self, block: nn.Module, hidden: Tensor, level: int) -> Tensor:
        return block(hidden, self.context, level, self.grids[level])


class RewrittenTransformer(nn.Module):
    """Transformer blocks over space and over time, blended.

    Feed-forward layers run in `chunks`, a divisor of the number of positions.
    """

    def __init__(self, block: TransformerSpatioTemporalModel, folded: bool, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.norm = block.norm
        self.time_proj, self.time_pos_embed = block.time_proj, block.time_pos_embed
        self.space, self.time = block.transformer_blocks, block.temporal_transformer_blocks
        gain, offset = block.norm.weight.detach(), block.norm.bias.detach()
        weight = block.proj_in.weight.detach()
        self.proj_in = linear(weight * gain, block.proj_in.bias.detach() + weight @ offset)
        # a s + (1 - a) t is a multiple of (r s + t) or of (s + t r), with the ratio r that is at most one.
        share = float(spatial_share(block.time_mixer))
        self.share, self.largest = share, max(share, 1 - share)
        weight, bias = block.proj_out.weight.detach(), block.proj_out.bias.detach()
        self.proj_out = linear(weight * self.largest, bias)
        self.space_cross = nn.ModuleList(
            CrossAttention(layer.attn2, folded) for layer in block.transformer_blocks
        )
        self.time_cross = nn.ModuleList(
            CrossAttention(layer.attn2, True) for layer in block.temporal_transformer_blocks
        )
        for layer in (*self.space, *self.time):
            layer.attn2 = None
            for name in ("ff", "ff_in"):
                if getattr(layer, name, None) is not None:
                    feed_forward = getattr(layer, name)
                    feed_forward.net[0] = SplitGEGLU(feed_forward.net[0])

    def forward(self, hidden: Tensor, context: Context, level: int, grid: Grid) -> Tensor:
        """(batch * frames, channels, h, w) -> the same sizes."""
        residual = hidden
        count = grid.batch * grid.frames
        channels = self.proj_in.out_features
        hidden = group_norm(self.norm, hidden, count, grid.positions, affine=False)
        hidden = self.proj_in(hidden.transpose(1, 2))
        positions = torch.arange(grid.frames, device=hidden.device)
        position_emb = self.time_pos_embed(self.time_proj(positions).to(hidden.dtype))[:, None, :]
        layers: list[Any] = list(zip(self.space, self.space_cross, self.time, self.time_cross, strict=True))
        for index, (space, space_cross, time, time_cross) in enumerate(layers):
            hidden = self.over_space(space, space_cross, hidden, context, level, grid)
            by_frame = hidden.reshape(grid.batch, grid.frames, grid.positions, channels)
            over_time = (by_frame + position_emb).transpose(1, 2)
            over_time = over_time.reshape(grid.batch * grid.positions, grid.frames, channels)
            over_time = self.over_time(time, time_cross, over_time, context, grid)
            over_time = over_time.reshape(grid.batch, grid.positions, grid.frames, channels)
            over_time = over_time.transpose(1, 2).reshape(count, grid.positions, channels)
            if self.share == self.largest:
                hidden = hidden + over_time * ((1 - self.share) / self.share)
            else:
                hidden = hidden * (self.share / (1 - self.share)) + over_time
            if index + 1 < len(layers):
                hidden = hidden * self.largest
        hidden = self.proj_out(hidden).transpose(1, 2)
        return hidden.reshape(count, channels, grid.height, grid.width) + residual

    def over_space(
        self,
        block: BasicTransformerBlock,
        cross: CrossAttention,
        hidden: Tensor,
        context: Context,
        level: int,
        grid: Grid,
    ) -> Tensor:
        """Self-attention, cross-attention and feed-forward; (batch * frames, positions, channels)."""
        hidden = hidden + self_attention(block.attn1, block.norm1(hidden))
        count = grid.batch * grid.frames
        mask = context.masks[level]
        audio = cross.audio(block.norm2(hidden), context.audio_tokens, count, mask)
        audio = audio.reshape(grid.batch, grid.frames * grid.positions, -1)
        audio = audio + cross.image(context.image_embedding)
        sizes = (count, grid.positions)
        hidden = hidden + audio.reshape(*sizes, -1)
        return hidden + in_chunks(block.norm3, block.ff, hidden, sizes, self.chunks)

    def over_time(
        self,
        block: TemporalBasicTransformerBlock,
        cross: CrossAttention,
        hidden: Tensor,
        context: Context,
        grid: Grid,
    ) -> Tensor:
        """The same after a first feed-forward; (batch * positions, frames, channels)."""
        sequences = (grid.batch * grid.positions, grid.frames)
        hidden = hidden + in_chunks(block.norm_in, block.ff_in, hidden, sequences, self.chunks)
        hidden = hidden + self_attention(block.attn1, block.norm1(hidden))
        queries = block.norm2(hidden).reshape(grid.batch, grid.positions * grid.frames, -1)
        audio = cross.audio(queries, context.mean_tokens, grid.batch, None)
        audio = audio + cross.image(context.image_embedding)
        hidden = hidden + audio.reshape(*sequences, -1)
        return hidden + in_chunks(block.norm3, block.ff, hidden, sequences, self.chunks)


class CrossAttention(nn.Module):
    """A cross-attention to the image's one token and to the audio tokens, with its output projection.

    `folded` applies the projections of queries and outputs to the tokens.
    """

    def __init__(self, attention: Attention, folded: bool) -> None:
        super().__init__()
        self.attention, self.folded = attention, folded
        if folded:
            heads, width = attention.heads, attention.inner_dim // attention.heads
            scale = width**-0.5
            query = attention.to_q.weight.detach() * scale
            output = attention.to_out[0].weight.detach().T
            self.register_buffer("query", query.reshape(heads, width, -1))
            self.register_buffer("output", output.reshape(heads, width, -1))

    def image(self, embedding: Tensor) -> Tensor:
        """The image's contribution, with the output projection's bias: (batch, 1, channels)."""
        return self.attention.to_out[0](self.attention.to_v(embedding))[:, None]

    def audio(self, hidden: Tensor, tokens: Tensor, count: int, mask: Tensor | None) -> Tensor:
        """The audio's contribution, without the output projection's bias: (n, queries, channels).

        Args:
            hidden: (n, queries, channels).
            tokens: (n, tokens, context width).
            count: n, from the sizes of the UNet's inputs.
            mask: (1, queries, 1), or None for ones.
        """
        key, value = audio_keys_values(self.attention, tokens)
        if self.folded:
            query, output = self.get_buffer("query"), self.get_buffer("output")
            return attend_to_tokens(hidden, key, value, query, output, count, mask)
        attended = attend(self.attention.to_q(hidden), key, value, self.attention)
        if mask is not None:
            attended = attended * mask
        return F.linear(attended, self.attention.to_out[0].weight)


def attend_to_tokens(
    hidden: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    output_weight: Tensor,
    count: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Multi-head attention of many queries to few tokens, with the query and output projections included.

    With x the hidden states and, for each head, Wq and Wo its parts of the projections,
    ``(x Wq) K' = x (Wq K')`` and ``(P V) Wo = P (V Wo)``: for t tokens and h heads, a position costs
    2 h t multiplications per channel, and no longer those of two square projections.

    Args:
        hidden: (n, queries, channels).
        key, value: (n, tokens, inner channels).
        query_weight: (heads, head width, channels), scaled.
        output_weight: (heads, head width, channels).
        count: n, given because sizes read from a computed tensor would stay in the exported graph.
        mask: (1, queries, 1), what the result is multiplied by, or None.

    Returns:
        (n, queries, channels).
    """
    heads, width, channels = query_weight.shape
    tokens = key.shape[1]

    def by_head(projected: Tensor, weight: Tensor) -> Tensor:
        # The tokens of all items in one product per head, so that its weights are read once.
        parts = projected.reshape(-1, heads, width).transpose(0, 1) @ weight
        parts = parts.reshape(heads, -1, tokens, channels).transpose(0, 1)
        return parts.reshape(-1, heads * tokens, channels)

    scores = hidden @ by_head(key, query_weight).transpose(1, 2)
    shares = scores.reshape(count, -1, heads, tokens).softmax(dim=-1)
    shares = shares.reshape(count, -1, heads * tokens)
    if mask is not None:
        shares = shares * mask
    return shares @ by_head(value, output_weight)


def folded_levels(positions: int, tokens: int, levels: int) -> int:
    """How many of the finest levels have at least 16 times as many positions as tokens.

    Folding costs two multiplications per token for each that it saves per position, in smaller products:
    measured on x86, it breaks even at about 8 times as many.
    """
    return sum(positions >> 2 * level >= 16 * tokens for level in range(levels))
