"""The UNet's two forwards, against each other and against diffusers' own."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch.nn.functional import interpolate

from sonic.errors import InputError
from sonic_convert.modules.exportable_unet import ExportableUNet
from sonic_convert.modules.unet import SonicUNet

CONFIG = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": [32, 64, 96],
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 48,
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "num_attention_heads": [1, 2, 3],
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 2 + ["DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 2,
}


@pytest.fixture(scope="module")
def unet() -> SonicUNet:
    unet = SonicUNet.build(CONFIG)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in unet.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator)
        state[name] = values / max(1, tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.1 * values
        if tensor.ndim == 1 and name.endswith("weight"):
            state[name] += 1
    unet.load_state_dict(state, assign=True)
    return unet


def clip(batch: int, frames: int, height: int, width: int, same_audio: bool = False):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    audio = draw(batch, frames, 5, 24)
    if same_audio:
        audio = audio[:, :1].expand(-1, frames, -1, -1)
    face_mask = torch.zeros(1, 1, 8 * height, 8 * width)
    face_mask[..., 8 : 5 * height, 16 : 6 * width] = 1
    ids = torch.rand(batch, 3, generator=generator) * 20
    return (
        draw(batch, frames, 8, height, width),
        torch.tensor([1.2]),
        ids,
        draw(batch, 24),
        audio,
        face_mask,
    )


def published(unet: SonicUNet, sample, timestep, ids, image, audio, face_mask) -> torch.Tensor:
    frames = sample.shape[1]
    image_tokens = image[:, None, None].expand(-1, frames, -1, -1).flatten(0, 1)
    return unet(sample, timestep, ids, image_tokens, audio.flatten(0, 1), face_mask)


@torch.inference_mode()
def test_rewrites_change_nothing_with_two_transformers_a_block() -> None:
    deep = SonicUNet.build(CONFIG | {"transformer_layers_per_block": 2})
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5
        for name, tensor in deep.state_dict().items()
    }
    deep.load_state_dict(state, assign=True)
    *others, face_mask = clip(2, 3, 8, 8)
    expected = published(deep, *others, face_mask)
    masks = [interpolate(face_mask, (8 >> i, 8 >> i), mode="bicubic") for i in range(3)]
    found = ExportableUNet(deep, 2)(*others, *masks)
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("folded", [0, 2, 3])
@pytest.mark.parametrize("shape", [(3, 4, 8, 16), (1, 1, 16, 8), (2, 7, 8, 8)])
@torch.inference_mode()
def test_rewrites_change_nothing(unet: SonicUNet, shape: tuple[int, int, int, int], folded: int) -> None:
    inputs = clip(*shape)
    expected = published(unet, *inputs)
    *others, face_mask = inputs
    height, width = shape[2:]
    masks = [interpolate(face_mask, (height >> i, width >> i), mode="bicubic") for i in range(3)]
    found = ExportableUNet(unet, folded)(*others, *masks)
    # The rewrites share weights and leave the published layers as they are.
    assert torch.equal(published(unet, *inputs), expected)
    assert (found - expected).norm() / expected.norm() < 1e-5


@torch.inference_mode()
def test_without_audio_it_is_diffusers_unet(unet: SonicUNet) -> None:
    # Stock diffusers takes the first frame's context over time, Sonic the mean: equal for equal frames.
    silent = SonicUNet.build(CONFIG)
    state = {k: v * 0 if "to_v_ip" in k else v for k, v in unet.state_dict().items()}
    silent.load_state_dict(state, assign=True)
    stock = UNetSpatioTemporalConditionModel.from_config(CONFIG).eval()
    stock.load_state_dict({k: v for k, v in state.items() if "processor" not in k})
    sample, timestep, ids, image, audio, face_mask = clip(2, 3, 8, 16)
    found = published(silent, sample, timestep, ids, image, audio, face_mask)
    expected = stock(sample, timestep, image[:, None], ids, return_dict=False)[0]
    assert (found - expected).norm() / expected.norm() < 1e-5


@torch.inference_mode()
def test_audio_outside_the_mask_reaches_spatial_layers_through_nothing(unet: SonicUNet) -> None:
    sample, timestep, ids, image, audio, face_mask = clip(1, 3, 8, 16)
    with_face = published(unet, sample, timestep, ids, image, audio, face_mask)
    without = published(unet, sample, timestep, ids, image, audio, face_mask * 0)
    assert (with_face - without).norm() / with_face.norm() > 1e-3


def test_group_count_must_divide_the_channels() -> None:
    assert SonicUNet.build(CONFIG | {"norm_num_groups": 4}).conv_norm_out.num_groups == 4
    with pytest.raises(InputError, match="norm_num_groups 5 does not divide"):
        SonicUNet.build(CONFIG | {"norm_num_groups": 5})
