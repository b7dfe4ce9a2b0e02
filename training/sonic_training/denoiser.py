"""Trains the UNet and its audio adapters in the way Stable Video Diffusion was trained.

The preconditioning is that of Karras et al., "Elucidating the design space of diffusion-based generative
models" (2022), with v-prediction: c_in = 1 / sqrt(s^2 + 1), c_skip = 1 / (s^2 + 1),
c_out = -s / sqrt(s^2 + 1). With the loss weight (s^2 + 1) / s^2, the loss of the denoised latent equals
the loss of v.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sonic_convert.modules.audio import AudioToToken
from sonic_convert.modules.unet import (
    SonicUNet,
    attend,
    audio_keys_values,
    denoise,
    split_frames,
)
from sonic_training.trainer import TrainingOptions, train

_LATENT_CHANNELS = 4
# The reference latent is unscaled; scaling it by this factor gives it unit deviation.
_REFERENCE_GAIN = 0.18215
# Compensates the last normalisation; chosen for the lowest initial loss at high noise.
_REFERENCE_OUT_GAIN = 0.57


@dataclass(frozen=True)
class DenoiserOptions:
    """How windows, noise and conditioning are sampled in one stage of the training.

    Attributes:
        window_frames: frames of a window.
        windows_per_step: windows of an optimizer step.
        crop_side: side of a square crop of the latents that contains the mouth; None for whole pictures.
        crop_anywhere: share of the crops whose position is random, with or without the mouth.
        sigma_log_mean, sigma_log_deviation: of ln(sigma), which is normally distributed.
        sigma_uniform: share of the windows for which ln(sigma) is uniform within `sigma_limits` instead.
        sigma_limits: smallest and largest sigma of the sampler.
        drop_all: share of the windows without image and audio conditioning.
        drop_audio: share of the windows with image conditioning only. Together with the fully conditioned
            windows, these train the sampler's three guidance branches.
        mouth_weight, face_weight: added to the loss weight of 1 at the mouth and within the face mask.
    """

    window_frames: int = 25
    windows_per_step: int = 3
    crop_side: int | None = None
    crop_anywhere: float = 0.0
    sigma_log_mean: float = 0.7
    sigma_log_deviation: float = 1.6
    sigma_uniform: float = 0.1
    sigma_limits: tuple[float, float] = (0.002, 700.0)
    drop_all: float = 0.06
    drop_audio: float = 0.12
    mouth_weight: float = 4.0
    face_weight: float = 0.0


@dataclass(frozen=True)
class EncodedClips:
    """Clips and their conditioning as inputs of the UNet.

    Attributes:
        latents: float16 (clips, frames, 4, h, w), scaled latents of the frames.
        references: float16 (clips, 4, h, w), unscaled latents of the portraits.
        image_embeddings: float16 (clips, width).
        audio_windows: float16 (clips, frames, states, layers, width), the audio encoder's states.
        buckets: float32 (clips, 2), translation and expression.
        masks: face masks, one float16 (clips, 1, h_level, w_level) for each resolution level of the UNet.
        mouths: float16 (clips, 1, h, w), 1 at the mouth.
    """

    latents: Tensor
    references: Tensor
    image_embeddings: Tensor
    audio_windows: Tensor
    buckets: Tensor
    masks: tuple[Tensor, ...]
    mouths: Tensor


class Denoiser(nn.Module):
    """UNet and token head, which are trained together."""

    def __init__(self, unet: SonicUNet, tokens: AudioToToken) -> None:
        super().__init__()
        self.unet, self.tokens = unet, tokens


def build_unet(config: dict[str, Any], seed: int) -> SonicUNet:
    """A UNet with PyTorch's default initialisation, except that residual branches start near zero.

    It initially predicts the reference latent (`start_as_copy`).

    Args:
        config: of the official `config.json`.
        seed: of the weights.
    """
    unet = SonicUNet.build(config)
    unet.to_empty(device="cpu")
    torch.manual_seed(seed)
    for module in unet.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        if hasattr(module, "mix_factor"):
            nn.init.constant_(module.mix_factor, 0.5)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("conv2.weight", "proj_out.weight")) or name.startswith("conv_out.weight"):
                parameter.mul_(0.1)
    start_as_copy(unet)
    return unet


def start_as_copy(unet: SonicUNet) -> None:
    """Initialise the skip path around all residual branches so that the UNet predicts the reference latent.

    The reference's four channels are carried from `conv_in` over the last skip connection to `conv_out`,
    each as a pair (x, -x), which passes the last activation because silu(x) - silu(-x) = x. At high noise,
    v is the negative clean latent, and clips mostly look like their portrait: so this is a good start.
    """
    last = unet.up_blocks[-1].resnets[-1].spatial_res_block.conv_shortcut
    width = unet.conv_in.out_channels
    pairs = range(2 * _LATENT_CHANNELS)
    with torch.no_grad():
        last.weight[pairs] = 0
        last.bias[pairs] = 0
        for convolution in (unet.conv_in, unet.conv_out):
            convolution.bias.zero_()
        unet.conv_in.weight[:, _LATENT_CHANNELS:] *= _REFERENCE_GAIN
        unet.conv_in.weight[pairs] = 0
        unet.conv_out.weight[:, pairs] = 0
        for channel in range(_LATENT_CHANNELS):
            for index, sign in ((2 * channel, 1.0), (2 * channel + 1, -1.0)):
                unet.conv_in.weight[index, _LATENT_CHANNELS + channel, 1, 1] = sign * _REFERENCE_GAIN
                last.weight[index, width + index] = 1.0
                unet.conv_out.weight[channel, index, 1, 1] = -sign * _REFERENCE_OUT_GAIN


def train_denoiser(
    model: Denoiser,
    clips: EncodedClips,
    folder: Path,
    stages: tuple[tuple[DenoiserOptions, TrainingOptions], ...],
    seed: int,
    prefix: str = "",
) -> Denoiser:
    """Train on random windows of the clips, stage by stage.

    Stages with short windows come first: for the same cost, each step covers more people and more noise
    levels. The last stage has the sampler's window length.

    Args:
        model: trained in place.
        clips: the training data.
        folder: for the training state.
        stages: sampling options and schedule of every stage.
        seed: of windows, noise and conditioning.
        prefix: of the names of the stages' files.

    Returns:
        `model`.
    """
    for module in model.modules():  # channels last is about 14 % faster on a CPU
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    names = [prefix + stage_name(options) for options, _ in stages]
    started = [index for index, name in enumerate(names) if (folder / f"{name}.state.pt").exists()]
    for index, (options, training) in enumerate(stages):
        if started and index < started[-1]:
            continue

        def loss(step: int, options: DenoiserOptions = options) -> dict[str, Tensor]:
            generator = np.random.default_rng([seed, options.window_frames, options.crop_side or 0, step])
            return denoiser_loss(model, clips, options, generator)

        train(names[index], model, loss, folder, training)
    return model


def stage_name(options: DenoiserOptions) -> str:
    """Name of the files with the state of a stage."""
    return f"denoiser-{options.window_frames}" + ("-crops" if options.crop_side else "")


def denoiser_loss(
    model: Denoiser, clips: EncodedClips, options: DenoiserOptions, generator: np.random.Generator
) -> dict[str, Tensor]:
    """The weighted v-prediction loss of random windows.

    Args:
        model: UNet and token head.
        clips: the training data.
        options: how windows, noise and conditioning are sampled.
        generator: the source of randomness.

    Returns:
        "loss", and to be logged, the unweighted loss of fully conditioned windows at "low" (sigma < 0.7),
        "middle" and "high" (sigma >= 5) noise, as far as there are any.
    """
    count, frames = options.windows_per_step, options.window_frames
    chosen = torch.from_numpy(generator.integers(len(clips.latents), size=count))
    starts = generator.integers(clips.latents.shape[1] - frames + 1, size=count)
    window = torch.from_numpy(starts[:, None] + np.arange(frames))
    clean = clips.latents[chosen[:, None], window].float()
    audio = clips.audio_windows[chosen[:, None], window].float()
    reference = clips.references[chosen].float()
    mouths = clips.mouths[chosen].float()
    masks = tuple(level[chosen].float() for level in clips.masks)
    if options.crop_side is not None:
        corners = crop_corners(mouths, options.crop_side, options.crop_anywhere, generator)
        clean, reference, mouths, finest = (
            crop(x, corners, options.crop_side) for x in (clean, reference, mouths, masks[0])
        )
        masks = tuple(functional.avg_pool2d(finest, 2**level) for level in range(len(masks)))
    embedding = clips.image_embeddings[chosen].float()
    choice = torch.from_numpy(generator.random(count))
    keep_image = (choice >= options.drop_all).float()
    keep_audio = (choice >= options.drop_all + options.drop_audio).float()

    log_sigma = generator.normal(options.sigma_log_mean, options.sigma_log_deviation, count)
    low, high = np.log(options.sigma_limits)
    anywhere = generator.uniform(low, high, count)
    log_sigma = np.where(generator.random(count) < options.sigma_uniform, anywhere, log_sigma)
    sigma = torch.from_numpy(np.exp(log_sigma)).float()
    noise = torch.from_numpy(generator.standard_normal(clean.shape, np.float32))
    s = sigma[:, None, None, None, None]
    noisy = (clean + s * noise) / (s**2 + 1).sqrt()
    target = (noise - s * clean) / (s**2 + 1).sqrt()  # v: x0 = c_skip x + c_out v

    reference = (reference * keep_image[:, None, None, None])[:, None].expand(-1, frames, -1, -1, -1)
    sample = torch.cat([noisy, reference], dim=2).flatten(0, 1)
    sample = sample.contiguous(memory_format=torch.channels_last).unflatten(0, (count, frames))
    # Dropped audio is all zeros, as in the sampler's unconditional tokens.
    tokens = model.tokens(audio * keep_audio[:, None, None, None, None])
    time_ids = torch.cat([torch.full((count, 1), 12.5), clips.buckets[chosen]], dim=1)
    context = WindowContext(embedding * keep_image[:, None], tokens, masks)
    predicted = denoise(model.unet, sample, 0.25 * sigma.log(), time_ids, context).float()
    squared = (predicted - target) ** 2
    weight = 1 + options.mouth_weight * mouths[:, None] + options.face_weight * masks[0][:, None]
    error = (weight * squared).mean(dim=(1, 2, 3, 4))
    values = {"loss": error.mean()}
    with torch.no_grad():
        plain = squared.mean(dim=(1, 2, 3, 4))
        for name, least, most in (("low", 0.0, 0.7), ("middle", 0.7, 5.0), ("high", 5.0, 1e4)):
            inside = (sigma >= least) & (sigma < most) & (keep_image > 0) & (keep_audio > 0)
            if inside.any():
                values[name] = plain[inside].mean()
    return values


def crop_corners(
    mouths: Tensor, side: int, anywhere: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Top left corners (row, column) of random square crops, int64 (n, 2).

    Args:
        mouths: (n, 1, h, w), positive at the mouth.
        side: of the crops.
        anywhere: share of the crops at any position; the others contain the mouth, or lie within it if it
            is larger than the crop.
        generator: the source of randomness.
    """
    corners = np.zeros((len(mouths), 2), np.int64)
    for index, mouth in enumerate(mouths[:, 0].numpy() > 0):
        unconstrained = anywhere > 0 and generator.random() < anywhere
        for axis in (0, 1):
            limit = mouth.shape[axis] - side
            low, high = 0, limit
            if not unconstrained and mouth.any():
                covered = np.flatnonzero(mouth.any(axis=1 - axis))
                low, high = sorted(np.clip([covered[-1] + 1 - side, covered[0]], 0, limit))
            corners[index, axis] = generator.integers(low, high + 1)
    return corners


def crop(x: Tensor, corners: NDArray[np.int64], side: int) -> Tensor:
    """Crop each item at its own corner: (n, ..., h, w) -> (n, ..., side, side)."""
    return torch.stack(
        [
            item[..., row : row + side, column : column + side]
            for item, (row, column) in zip(x, corners.tolist(), strict=True)
        ]
    )


@dataclass(frozen=True)
class WindowContext:
    """What the UNet's cross-attentions attend to in training.

    The image has a single token, so its attention weights are all 1 and its output is that token's value.

    Attributes:
        image_embedding: (batch, context width).
        audio_tokens: (batch, frames, tokens, context width).
        masks: one (batch, 1, h_level, w_level) for every level.
    """

    image_embedding: Tensor
    audio_tokens: Tensor
    masks: tuple[Tensor, ...]

    def spatial(self, attention: Attention, hidden: Tensor, level: int) -> Tensor:
        """Spatial cross-attention: (batch * frames, positions, channels) -> the same shape."""
        batch, frames = self.audio_tokens.shape[:2]
        key, value = audio_keys_values(attention, self.audio_tokens.flatten(0, 1))
        audio = split_frames(attend(attention.to_q(hidden), key, value, attention), batch, frames)
        image = attention.to_v(self.image_embedding)[:, None, None, :]
        return (audio * self.masks[level].reshape(batch, 1, -1, 1) + image).flatten(0, 1)

    def temporal(self, attention: Attention, hidden: Tensor) -> Tensor:
        """Temporal cross-attention: (batch * positions, frames, channels) -> the same shape."""
        batch = self.audio_tokens.shape[0]
        frames, channels = hidden.shape[1:]
        key, value = audio_keys_values(attention, self.audio_tokens.mean(dim=1))
        # All positions of a batch item share keys and values, so their queries are joined to one sequence.
        query = attention.to_q(hidden).reshape(batch, -1, channels)
        image = attention.to_v(self.image_embedding)[:, None, :]
        return (attend(query, key, value, attention) + image).reshape(-1, frames, channels)
