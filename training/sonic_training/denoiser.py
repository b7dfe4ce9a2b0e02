"""The UNet with its audio adapters, trained as Stable Video Diffusion was.

Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), with
v-prediction: c_in = 1 / sqrt(s^2 + 1), c_skip = 1 / (s^2 + 1), c_out = -s / sqrt(s^2 + 1), and the
weight (s^2 + 1) / s^2, under which the loss of the denoised latent is that of v itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from sonic_convert.modules.audio import AudioToToken
from sonic_convert.modules.unet import (
    ExportableContext,
    SonicUNet,
    attend,
    audio_keys_values,
    split_frames,
    walk,
)
from sonic_training.trainer import TrainingOptions, train


@dataclass(frozen=True)
class DenoiserOptions:
    """How noise and windows are drawn, and what is left out for the guidance.

    Log-normal sigmas with the mean and deviation of ln(sigma); `drop_all` of the windows see neither
    image nor audio, `drop_audio` the image alone: the sampler's three branches.
    """

    window_frames: int = 25
    windows_a_step: int = 3
    sigma_log_mean: float = 0.7
    sigma_log_deviation: float = 1.6
    drop_all: float = 0.06
    drop_audio: float = 0.12
    mouth_weight: float = 4.0


@dataclass(frozen=True)
class EncodedClips:
    """Clips as the UNet meets them; every tensor's first axis is the clip.

    Attributes:
        latents: float16 (clips, frames, 4, h, w), scaled.
        references: float16 (clips, 4, h, w), unscaled.
        image_embeddings: float16 (clips, width).
        audio_windows: float16 (clips, frames, states, layers, width).
        buckets: float32 (clips, 2).
        masks: one float16 (clips, 1, h_level, w_level) for each level.
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
    """UNet and token head, trained together."""

    def __init__(self, unet: SonicUNet, tokens: AudioToToken) -> None:
        super().__init__()
        self.unet, self.tokens = unet, tokens


def build_unet(config: dict[str, Any], seed: int) -> SonicUNet:
    """A UNet with torch's usual initialisation, whose residual branches start near zero."""
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
    return unet


def train_denoiser(
    model: Denoiser,
    clips: EncodedClips,
    folder: Path,
    stages: tuple[tuple[DenoiserOptions, TrainingOptions], ...],
    seed: int,
) -> Denoiser:
    """Train on random windows of the clips, one stage after another.

    Stages of short windows come first: for the same work they show more people and more noise levels
    a step; the last one has the windows that the sampler uses.
    """
    names = [f"denoiser-{options.window_frames}" for options, _ in stages]
    started = [index for index, name in enumerate(names) if (folder / f"{name}.state.pt").exists()]
    for index, (options, training) in enumerate(stages):
        if started and index < started[-1]:
            continue

        def loss(step: int, options: DenoiserOptions = options) -> dict[str, Tensor]:
            generator = np.random.default_rng([seed, options.window_frames, step])
            return denoiser_loss(model, clips, options, generator)

        train(names[index], model, loss, folder, training)
    return model


def denoiser_loss(
    model: Denoiser, clips: EncodedClips, options: DenoiserOptions, generator: np.random.Generator
) -> dict[str, Tensor]:
    """The weighted v loss of some windows."""
    count, frames = options.windows_a_step, options.window_frames
    chosen = torch.from_numpy(generator.integers(len(clips.latents), size=count))
    starts = generator.integers(clips.latents.shape[1] - frames + 1, size=count)
    window = torch.from_numpy(starts[:, None] + np.arange(frames))
    clean = clips.latents[chosen[:, None], window].float()
    audio = clips.audio_windows[chosen[:, None], window].float()
    reference = clips.references[chosen].float()[:, None].expand(-1, frames, -1, -1, -1)
    embedding = clips.image_embeddings[chosen].float()
    choice = torch.from_numpy(generator.random(count))
    see = (choice >= options.drop_all).float()
    hear = (choice >= options.drop_all + options.drop_audio).float()

    sigma = torch.from_numpy(
        np.exp(generator.normal(options.sigma_log_mean, options.sigma_log_deviation, count))
    ).float()
    noise = torch.from_numpy(generator.standard_normal(clean.shape, np.float32))
    s = sigma[:, None, None, None, None]
    noisy = (clean + s * noise) / (s**2 + 1).sqrt()
    target = (noise - s * clean) / (s**2 + 1).sqrt()  # v: x0 = c_skip x + c_out v

    sample = torch.cat([noisy, reference * see[:, None, None, None, None]], dim=2)
    # Silence is the audio windows' zero, as in the sampler's unconditional tokens.
    tokens = model.tokens(audio * hear[:, None, None, None, None])
    time_ids = torch.cat([torch.full((count, 1), 12.5), clips.buckets[chosen]], dim=1)
    masks = tuple(level[chosen].float() for level in clips.masks)
    context = WindowContext(embedding * see[:, None], tokens, masks)
    predicted = walk(model.unet, sample, 0.25 * sigma.log(), time_ids, context).float()
    weight = 1 + options.mouth_weight * clips.mouths[chosen].float()[:, None]
    error = (weight * (predicted - target) ** 2).mean(dim=(1, 2, 3, 4))
    return {"loss": error.mean()}


class WindowContext(ExportableContext):
    """The exportable context, with a mask for each window of the batch."""

    def spatial(self, attention: Attention, hidden: Tensor, level: int) -> Tensor:
        batch, frames = self.audio_tokens.shape[:2]
        key, value = audio_keys_values(attention, self.audio_tokens.flatten(0, 1))
        audio = split_frames(attend(attention.to_q(hidden), key, value, attention), batch, frames)
        image = attention.to_v(self.image_embedding)[:, None, None, :]
        return (audio * self.masks[level].reshape(batch, 1, -1, 1) + image).flatten(0, 1)
