"""The denoiser: SVD's spatio-temporal UNet with an audio adapter in every cross-attention.

Modules and tensor names are those of diffusers' ``UNetSpatioTemporalConditionModel``, plus
``...attn2.processor.to_k_ip.0.weight`` and ``...attn2.processor.to_v_ip.0.weight``.
:class:`SonicUNet` computes what the published inference code computes; it is the ground truth for parity.
What is exported is :class:`sonic_convert.modules.exportable_unet.ExportableUNet`: the same walk over the
blocks, and the same numbers in fewer operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from sonic_convert.modules.groups import set_group_count


class AudioAdapter(nn.Module):
    """Keys and values for the audio tokens of one cross-attention (the layer's queries are shared)."""

    def __init__(self, hidden_width: int, context_width: int) -> None:
        super().__init__()
        self.to_k_ip = nn.ModuleList([nn.Linear(context_width, hidden_width, bias=False)])
        self.to_v_ip = nn.ModuleList([nn.Linear(context_width, hidden_width, bias=False)])

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("diffusers' forward does not support audio adapters; call SonicUNet's own forward")


class CrossAttentions(Protocol):
    """How the cross-attentions of one forward read their context; each returns before `to_out`."""

    def spatial(self, attention: Attention, hidden: Tensor, level: int) -> Tensor:
        """`hidden` (batch * frames, height * width, channels) -> the same shape."""

    def temporal(self, attention: Attention, hidden: Tensor) -> Tensor:
        """`hidden` (batch * height * width, frames, channels) -> the same shape."""


class SonicUNet(UNetSpatioTemporalConditionModel):
    """The UNet with the published forward; build it with :meth:`build`."""

    @classmethod
    def build(cls, config: dict[str, Any]) -> SonicUNet:
        """Make an uninitialised UNet on the meta device from a diffusers ``config.json``.

        Small checkpoints may add `norm_num_groups` (32 where absent), which diffusers fixes.
        """
        groups = config.get("norm_num_groups", 32)
        config = {key: value for key, value in config.items() if key != "norm_num_groups"}
        with torch.device("meta"):
            unet = cls.from_config(config)
            for name, module in unet.named_modules():
                if isinstance(module, Attention) and name.endswith("attn2"):
                    module.set_processor(AudioAdapter(module.inner_dim, module.cross_attention_dim))
        set_group_count(unet, groups)
        # Sinusoidal embeddings hold no tensors, so only parameters are on the meta device.
        return unet.eval()

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        added_time_ids: Tensor,
        image_tokens: Tensor,
        audio_tokens: Tensor,
        face_mask: Tensor,
    ) -> Tensor:
        """Predict v for a batch of windows, as the published code does.

        Args:
            sample: (batch, frames, 8, h, w), scaled noisy latents and reference latents.
            timestep: (1,) or (), ``0.25 * ln(sigma)``.
            added_time_ids: (batch, 3), frame rate and the two motion buckets.
            image_tokens: (batch * frames, 1, context width).
            audio_tokens: (batch * frames, tokens, context width).
            face_mask: (1, 1, H, W) with values 0..1, H and W eight times h and w.

        Returns:
            (batch, frames, 4, h, w).
        """
        batch, frames = sample.shape[:2]
        context = PublishedContext(image_tokens, audio_tokens, face_mask, batch, frames)
        return denoise(self, sample, timestep, added_time_ids, context)


@dataclass(frozen=True)
class PublishedContext:
    """Attention over the single image token, plus attention over audio tokens times the face mask."""

    image_tokens: Tensor
    audio_tokens: Tensor
    face_mask: Tensor
    batch: int
    frames: int

    def spatial(self, attention: Attention, hidden: Tensor, level: int) -> Tensor:
        query = attention.to_q(hidden)
        image = attend(query, attention.to_k(self.image_tokens), attention.to_v(self.image_tokens), attention)
        audio = attend(query, *audio_keys_values(attention, self.audio_tokens), attention)
        return image + audio * self.level_mask(hidden.shape[1])

    def temporal(self, attention: Attention, hidden: Tensor) -> Tensor:
        image_tokens = self.over_time(self.image_tokens, hidden)
        audio_tokens = self.over_time(self.audio_tokens, hidden)
        query = attention.to_q(hidden)
        image = attend(query, attention.to_k(image_tokens), attention.to_v(image_tokens), attention)
        return image + attend(query, *audio_keys_values(attention, audio_tokens), attention)

    def over_time(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """The mean of a context over the frames, repeated for every position."""
        mean = split_frames(tokens, self.batch, self.frames).mean(dim=1)
        return mean.repeat_interleave(hidden.shape[0] // self.batch, dim=0)

    def level_mask(self, positions: int) -> Tensor:
        """The mask resized (bicubic) to the level with that many positions: (1, positions, 1)."""
        height, width = self.face_mask.shape[2:]
        level_height = int((positions * height / width) ** 0.5 + 1e-6)
        level_height += positions % level_height != 0
        size = (level_height, positions // level_height)
        mask = F.interpolate(self.face_mask, size=size, mode="bicubic")
        return mask.reshape(1, positions, 1)


def split_frames(tensor: Tensor, batch: int, frames: int) -> Tensor:
    """(batch * frames, ...) -> (batch, frames, ...).

    A reshape by the tensor's own sizes: `unflatten` would bake them into a traced graph.
    """
    return tensor.reshape(batch, frames, *tensor.shape[1:])


def attend(query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
    """Multi-head attention of (batch, queries, channels) over (batch, keys, channels)."""
    heads, head_width = attention.heads, attention.inner_dim // attention.heads
    batch, queries, channels = query.shape
    query, key, value = (
        x.reshape(x.shape[0], x.shape[1], heads, head_width).transpose(1, 2) for x in (query, key, value)
    )
    # Reshaped by the query's sizes: nothing in the graph may read the shape of a tensor that a fused
    # attention no longer computes.
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    return attended.reshape(batch, queries, channels)


def audio_keys_values(attention: Attention, audio_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The adapter's keys and values, (batch, tokens, channels) each."""
    adapter: AudioAdapter = attention.processor
    return adapter.to_k_ip[0](audio_tokens), adapter.to_v_ip[0](audio_tokens)


def self_attention(attention: Attention, hidden: Tensor) -> Tensor:
    """Attention of a sequence over itself, (batch, tokens, channels)."""
    query, key, value = attention.to_q(hidden), attention.to_k(hidden), attention.to_v(hidden)
    return attention.to_out[0](attend(query, key, value, attention))


class Layers(Protocol):
    """What a walk over the blocks calls; hidden states are (batch * frames, channels, h, w)."""

    def resnet(self, block: Any, hidden: Tensor, level: int, skip: Tensor | None = None) -> Tensor:
        """A residual block over space and time, of `hidden` and the channels of `skip` after it."""

    def transformer(self, block: Any, hidden: Tensor, level: int) -> Tensor:
        """A transformer over space and time."""


@dataclass(frozen=True)
class PublishedLayers:
    """The layers as published; `emb` is (batch * frames, width)."""

    emb: Tensor
    context: CrossAttentions
    batch: int
    frames: int

    def resnet(
        self, block: SpatioTemporalResBlock, hidden: Tensor, level: int, skip: Tensor | None = None
    ) -> Tensor:
        hidden = hidden if skip is None else torch.cat([hidden, skip], dim=1)
        return spatio_temporal_resnet(block, hidden, self.emb, self.batch, self.frames)

    def transformer(self, block: TransformerSpatioTemporalModel, hidden: Tensor, level: int) -> Tensor:
        return spatio_temporal_transformer(block, hidden, self.context, level, self.batch, self.frames)


def denoise(
    unet: SonicUNet,
    sample: Tensor,
    timestep: Tensor,
    added_time_ids: Tensor,
    context: CrossAttentions,
) -> Tensor:
    """From `sample` (batch, frames, 8, h, w) to v (batch, frames, 4, h, w), with the published layers.

    `timestep` is one for the batch, () or (1,), or, in training, one for each item, (batch,).
    """
    batch, frames = sample.shape[:2]
    emb = time_embedding(unet, timestep, added_time_ids)
    layers = PublishedLayers(emb.repeat_interleave(frames, dim=0), context, batch, frames)
    return split_frames(walk(unet, sample.flatten(0, 1), layers), batch, frames)


def time_embedding(unet: SonicUNet, timestep: Tensor, added_time_ids: Tensor) -> Tensor:
    """The embedding of the step, of the frame rate and of the motion buckets, (batch, width)."""
    batch, dtype = added_time_ids.shape[0], unet.conv_in.weight.dtype
    emb = unet.time_embedding(unet.time_proj(timestep.reshape(-1).expand(batch)).to(dtype))
    added = unet.add_time_proj(added_time_ids.flatten()).reshape(batch, -1)
    return emb + unet.add_embedding(added.to(dtype))


def walk(unet: SonicUNet, sample: Tensor, layers: Layers) -> Tensor:
    """The UNet's blocks from (batch * frames, 8, h, w) to (batch * frames, 4, h, w)."""
    hidden = unet.conv_in(sample)
    skips = [hidden]
    for level, block in enumerate(unet.down_blocks):
        for resnet, attention in zip(block.resnets, attentions_of(block), strict=True):
            hidden = layers.resnet(resnet, hidden, level)
            if attention is not None:
                hidden = layers.transformer(attention, hidden, level)
            skips.append(hidden)
        for downsampler in block.downsamplers or ():
            hidden = downsampler(hidden)
            skips.append(hidden)

    deepest = len(unet.down_blocks) - 1
    middle = unet.mid_block
    hidden = layers.resnet(middle.resnets[0], hidden, deepest)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        hidden = layers.transformer(attention, hidden, deepest)
        hidden = layers.resnet(resnet, hidden, deepest)

    for index, block in enumerate(unet.up_blocks):
        level = deepest - index
        for resnet, attention in zip(block.resnets, attentions_of(block), strict=True):
            hidden = layers.resnet(resnet, hidden, level, skips.pop())
            if attention is not None:
                hidden = layers.transformer(attention, hidden, level)
        for upsampler in block.upsamplers or ():
            hidden = upsampler(hidden)

    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


def attentions_of(block: nn.Module) -> list[TransformerSpatioTemporalModel | None]:
    """The transformer after each resnet of a block, None for blocks without attention."""
    attentions = getattr(block, "attentions", None)
    return list(attentions) if attentions is not None else [None] * len(block.resnets)  # type: ignore[arg-type]


def mix(mixer: nn.Module, spatial: Tensor, temporal: Tensor) -> Tensor:
    """The learned blend of a spatial and a temporal result (no frame is image-only)."""
    alpha = torch.sigmoid(mixer.mix_factor)  # type: ignore[arg-type]
    return alpha * spatial + (1 - alpha) * temporal


def spatio_temporal_resnet(
    block: SpatioTemporalResBlock, hidden: Tensor, emb: Tensor, batch: int, frames: int
) -> Tensor:
    """A residual block over space, then one over time, blended; (batch * frames, channels, h, w)."""
    hidden = block.spatial_res_block(hidden, emb)
    spatial = split_frames(hidden, batch, frames).transpose(1, 2)
    temporal = block.temporal_res_block(spatial, split_frames(emb, batch, frames))
    return mix(block.time_mixer, spatial, temporal).transpose(1, 2).flatten(0, 1)


def spatio_temporal_transformer(
    block: TransformerSpatioTemporalModel,
    hidden: Tensor,
    context: CrossAttentions,
    level: int,
    batch: int,
    frames: int,
) -> Tensor:
    """Transformer blocks over space and over time, blended; (batch * frames, channels, h, w)."""
    residual = hidden
    height, width = hidden.shape[2:]
    hidden = block.proj_in(block.norm(hidden).flatten(2).transpose(1, 2))
    # Frame positions 0, 1, ..: sinusoids in float32, whatever the weights' type.
    positions = torch.arange(frames, device=hidden.device)
    position_emb = block.time_pos_embed(block.time_proj(positions).to(hidden.dtype))[:, None, :]
    for spatial_block, temporal_block in zip(
        block.transformer_blocks, block.temporal_transformer_blocks, strict=True
    ):
        hidden = spatial_transformer_block(
            spatial_block, hidden, lambda attn, x: context.spatial(attn, x, level)
        )
        over_time = (split_frames(hidden, batch, frames) + position_emb).transpose(1, 2)
        over_time = temporal_transformer_block(temporal_block, over_time.flatten(0, 1), context.temporal)
        over_time = split_frames(over_time, batch, height * width).transpose(1, 2).flatten(0, 1)
        hidden = mix(block.time_mixer, hidden, over_time)
    hidden = block.proj_out(hidden).transpose(1, 2)
    return hidden.reshape(batch * frames, -1, height, width) + residual


CrossAttention = Callable[[Attention, Tensor], Tensor]


def spatial_transformer_block(
    block: BasicTransformerBlock, hidden: Tensor, cross_attention: CrossAttention
) -> Tensor:
    """Self-attention, cross-attention and feed-forward; (batch * frames, positions, channels)."""
    hidden = hidden + self_attention(block.attn1, block.norm1(hidden))
    hidden = hidden + block.attn2.to_out[0](cross_attention(block.attn2, block.norm2(hidden)))
    return hidden + block.ff(block.norm3(hidden))


def temporal_transformer_block(
    block: TemporalBasicTransformerBlock, hidden: Tensor, cross_attention: CrossAttention
) -> Tensor:
    """The same after a first feed-forward; (batch * positions, frames, channels)."""
    hidden = hidden + block.ff_in(block.norm_in(hidden))
    hidden = hidden + self_attention(block.attn1, block.norm1(hidden))
    hidden = hidden + block.attn2.to_out[0](cross_attention(block.attn2, block.norm2(hidden)))
    return hidden + block.ff(block.norm3(hidden))
