"""The image submodels: the CLIP vision tower and both halves of the VAE."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sonic_convert.checkpoint.tensor_files import load_strict
from sonic_convert.modules.groups import set_group_count
from sonic_convert.modules.rewrites import (
    Grid,
    group_norm,
    over_frames,
    rewrite_convolutions,
    with_shared_weights,
)


class ImageEncoder(nn.Module):
    """CLIP's vision tower with its projection."""

    def __init__(self, clip: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.clip = clip

    @classmethod
    def from_state_dict(cls, config: dict[str, Any], state: dict[str, Tensor], source: str) -> ImageEncoder:
        """Build the tower that `config` describes and load `state` strictly."""
        settings = CLIPVisionConfig.from_dict(dict(config))
        settings._attn_implementation = "sdpa"
        with torch.device("meta"):
            clip = CLIPVisionModelWithProjection(settings)
        load_strict(clip, state, source)
        for module in clip.modules():  # a buffer that is in no file: 0, 1, 2, ...
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    positions = torch.arange(buffer.numel()).reshape(buffer.shape)
                    module.register_buffer(name, positions, persistent=False)
        return cls(clip).eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(1, 3, pixels, pixels) normalised -> (1, width)."""
        return self.clip(pixel_values).image_embeds


def build_vae(config: dict[str, Any], state: dict[str, Tensor], source: str) -> AutoencoderKLTemporalDecoder:
    """diffusers' VAE with `state` loaded strictly; `norm_num_groups` of the config is honoured."""
    groups = config.get("norm_num_groups", 32)
    config = {key: value for key, value in config.items() if key != "norm_num_groups"}
    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder.from_config(config)
    set_group_count(vae, groups)
    load_strict(vae, state, source)
    return vae.eval()


class VaeEncoder(nn.Module):
    """Encodes an image to the mode of its latent distribution (the posterior's mean), unscaled."""

    def __init__(self, vae: AutoencoderKLTemporalDecoder) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) in -1..1 -> (1, 4, H / 8, W / 8)."""
        return self.quant_conv(self.encoder(image)).chunk(2, dim=1)[0]


class VaeDecoder(nn.Module):
    """Decodes one chunk of latents to images; temporal layers connect the frames of a chunk."""

    def __init__(self, vae: AutoencoderKLTemporalDecoder) -> None:
        super().__init__()
        self.decoder = vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        """(frames, 4, h, w) unscaled -> (frames, 3, 8 h, 8 w) in about -1..1."""
        frames = latents.shape[0]
        image_only = latents.new_zeros(1, frames)
        return self.decoder(latents, image_only_indicator=image_only, num_frames=frames)


class ExportableVaeDecoder(nn.Module):
    """Computes what :class:`VaeDecoder` does in fewer operations, for a graph with dynamic sizes."""

    def __init__(self, vae: AutoencoderKLTemporalDecoder) -> None:
        super().__init__()
        decoder = self.decoder = with_shared_weights(vae.decoder)
        for block in (decoder.mid_block, *decoder.up_blocks):
            rewrite_convolutions(block)
        self.time_conv_out = over_frames(decoder.time_conv_out)

    def forward(self, latents: Tensor) -> Tensor:
        """(frames, 4, h, w) unscaled -> (frames, 3, 8 h, 8 w) in about -1..1."""
        decoder = self.decoder
        frames, _, height, width = latents.shape
        grid = Grid(1, frames, height, width)
        middle = decoder.mid_block
        hidden = middle.resnets[0](decoder.conv_in(latents), grid)
        # As published: the attention of a decoder with one layer a block has no residual block after it,
        # and is left out.
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=False):
            hidden = resnet(attention(hidden), grid)
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                hidden = resnet(hidden, grid)
            for upsampler in block.upsamplers or ():
                hidden = upsampler(hidden)
                grid = Grid(1, frames, 2 * grid.height, 2 * grid.width)
        sizes = (frames, grid.height, grid.width)
        hidden = decoder.conv_out(F.silu(group_norm(decoder.conv_norm_out, hidden, *sizes)))
        channels = decoder.conv_out.out_channels
        over_time = hidden.reshape(1, frames, channels, grid.positions).transpose(1, 2)
        images = self.time_conv_out(over_time).transpose(1, 2)
        return images.reshape(frames, channels, grid.height, grid.width)
