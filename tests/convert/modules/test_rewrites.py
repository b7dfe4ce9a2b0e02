"""Rewritten layers against diffusers' own."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.upsampling import Upsample2D
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic_convert.modules.exportable_unet import attend_to_tokens, folded_levels
from sonic_convert.modules.groups import set_group_count
from sonic_convert.modules.image import ExportableVaeDecoder, VaeDecoder
from sonic_convert.modules.rewrites import (
    Grid,
    PhaseUpsample,
    RewrittenResnet,
    SplitGEGLU,
    convolve_frames,
)

SIZES = st.integers(1, 9)


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    """Random values everywhere: gains, offsets and blends too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5)
    return module.eval()


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 3), channels=SIZES, height=SIZES, width=SIZES)
@torch.no_grad()
def test_upsampling_by_phases(count: int, channels: int, height: int, width: int) -> None:
    upsample = randomize(Upsample2D(channels, use_conv=True, out_channels=channels))
    hidden = torch.randn(count, channels, height, width)
    assert_close(PhaseUpsample(upsample)(hidden), upsample(hidden))


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 2), frames=SIZES, height=SIZES, width=SIZES)
@torch.no_grad()
def test_small_pictures_in_a_row(batch: int, frames: int, height: int, width: int) -> None:
    convolution = randomize(torch.nn.Conv2d(2, 1024, 3, padding=1))
    hidden = torch.randn(batch * frames, 2, height, width)
    seen: list[torch.Size] = []
    convolution.register_forward_hook(lambda module, arguments, result: seen.append(arguments[0].shape))
    found = convolve_frames(convolution, hidden, Grid(batch, frames, height, width))
    assert seen == [(batch, 2, height, frames * (width + 1))]
    assert_close(found, convolution(hidden))


def test_only_an_upsampling_with_its_convolution_is_rewritten() -> None:
    with pytest.raises(ValueError, match="3 x 3"):
        PhaseUpsample(Upsample2D(4, use_conv=False))


@torch.no_grad()
def test_geglu_in_two_maps() -> None:
    geglu = randomize(GEGLU(6, 10))
    hidden = torch.randn(2, 5, 6)
    assert_close(SplitGEGLU(geglu)(hidden), geglu(hidden))


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    frames=SIZES,
    sides=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    switched=st.booleans(),
    narrower=st.booleans(),
)
@torch.no_grad()
def test_residual_block_over_space_and_time(
    batch: int, frames: int, sides: tuple[int, int], switched: bool, narrower: bool
) -> None:
    channels = 64 if narrower else 32
    block = SpatioTemporalResBlock(
        channels, 32, None, eps=1e-6, merge_strategy="learned", switch_spatial_to_temporal_mix=switched
    )
    set_group_count(block, 8)  # more than one channel in each, so that gains and means matter
    block = randomize(block)
    hidden = torch.randn(batch * frames, channels, *sides)
    expected = block(hidden, image_only_indicator=torch.zeros(batch, frames))
    assert_close(RewrittenResnet(block)(hidden, Grid(batch, frames, *sides)), expected)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 3), queries=SIZES, tokens=SIZES, heads=st.integers(1, 4), masked=st.booleans())
@torch.no_grad()
def test_projections_folded_into_tokens(
    count: int, queries: int, tokens: int, heads: int, masked: bool
) -> None:
    torch.manual_seed(0)
    width, channels = 4, 6
    hidden = torch.randn(count, queries, channels)
    to_query, to_output = torch.randn(channels, heads * width), torch.randn(heads * width, channels)
    key, value = torch.randn(2, count, tokens, heads * width)
    mask = torch.rand(1, queries, 1) if masked else None

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(count, -1, heads, width).transpose(1, 2)

    attended = torch.nn.functional.scaled_dot_product_attention(
        split(hidden @ to_query), split(key), split(value)
    )
    attended = attended.transpose(1, 2).reshape(count, queries, -1)
    expected = (attended if mask is None else attended * mask) @ to_output
    query_weight = to_query.T.reshape(heads, width, channels) * width**-0.5
    found = attend_to_tokens(
        hidden, key, value, query_weight, to_output.reshape(heads, width, channels), count, mask
    )
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_levels_where_folding_pays() -> None:
    assert folded_levels(64 * 64, tokens=32, levels=4) == 2
    assert folded_levels(16 * 16, tokens=32, levels=4) == 0


@settings(max_examples=6, deadline=None)
@given(
    frames=st.integers(1, 5),
    sides=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    layers=st.integers(1, 2),
)
@torch.no_grad()
def test_vae_decoder(frames: int, sides: tuple[int, int], layers: int) -> None:
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=layers,
    )
    set_group_count(vae, 8)
    vae = randomize(vae)
    latents = torch.randn(frames, 4, *sides)
    expected = VaeDecoder(vae)(latents)
    assert_close(ExportableVaeDecoder(vae)(latents), expected)
    assert torch.equal(VaeDecoder(vae)(latents), expected)  # the rewrites leave it as it was
