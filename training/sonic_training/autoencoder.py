"""Trains the VAE, which encodes pictures of 128 x 128 pixels as latents of 16 x 16 x 4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from diffusers.models.upsampling import Upsample2D
from torch import Tensor

from sonic_convert.modules.groups import set_group_count
from sonic_training.pictures import FRAMES_PER_CLIP, Pictures
from sonic_training.trainer import TrainingOptions, train

# Group normalisation removes the mean of each group; with few channels per group, flat colours would be lost.
GROUPS = 1
_KL_WEIGHT = 1e-4
_EDGE_WEIGHT = 1.0
_MOUTH_WEIGHT = 2.0
_SQUARE_WEIGHT = 4.0
_START_LOG_VARIANCE = -6.0
_COLOR_CHANNELS = range(6)  # carry the three colours and their negatives after `start_as_blur`


def build(config: dict[str, Any], seed: int) -> AutoencoderKLTemporalDecoder:
    """diffusers' VAE with this model's number of groups, initialised as a blur (`start_as_blur`).

    Args:
        config: of `AutoencoderKLTemporalDecoder`.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    config = {key: value for key, value in config.items() if key != "norm_num_groups"}
    vae = AutoencoderKLTemporalDecoder.from_config(config)
    set_group_count(vae, GROUPS)
    start_as_blur(vae)
    return vae


def start_as_blur(vae: AutoencoderKLTemporalDecoder) -> None:
    """Initialise the skip path around all residual branches as a blur: averaging down, repeating up.

    Each colour is carried as a pair (x, -x), which passes the activations before the last convolutions
    because silu(x) - silu(-x) = x. Training then starts from pictures of 16 x 16 flat patches in the right
    colours, which normalised layers would otherwise be slow to learn.
    """
    pair = torch.tensor([1.0, -1.0])
    with torch.no_grad():
        for module in (*vae.encoder.modules(), *vae.decoder.modules()):
            if isinstance(module, ResnetBlock2D | TemporalResnetBlock):
                module.conv2.weight.zero_()
                module.conv2.bias.zero_()
                if module.conv_shortcut is not None:
                    _pass_colors(module.conv_shortcut, 0, 0)
            elif isinstance(module, Attention):
                module.to_out[0].weight.zero_()
            elif isinstance(module, Upsample2D):
                _pass_colors(module.conv, 1, 1)
            elif isinstance(module, Downsample2D):
                _pass_colors(module.conv, 0, 0)  # the mean of 2 x 2 pixels
                for row, column in ((0, 1), (1, 0), (1, 1)):
                    module.conv.weight[_COLOR_CHANNELS, _COLOR_CHANNELS, row, column] = 0.25
                module.conv.weight[_COLOR_CHANNELS, _COLOR_CHANNELS, 0, 0] = 0.25
        for convolution in (vae.encoder.conv_in, vae.decoder.conv_in):
            convolution.weight[:6] = 0
            convolution.bias[:6] = 0
            for color in range(3):
                convolution.weight[2 * color : 2 * color + 2, color, 1, 1] = pair
        for convolution, gain in ((vae.encoder.conv_out, 2.0), (vae.decoder.conv_out, 0.4)):
            convolution.weight[:3] = 0
            for color in range(3):
                convolution.weight[color, 2 * color : 2 * color + 2, 1, 1] = gain * pair
        vae.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
        vae.encoder.conv_out.weight[4:] *= 0.1
        vae.quant_conv.bias[4:] = _START_LOG_VARIANCE
        vae.decoder.time_conv_out.weight.zero_()
        vae.decoder.time_conv_out.weight[range(3), range(3), 1] = 1.0


def _pass_colors(convolution: torch.nn.Conv2d, row: int, column: int) -> None:
    """Make the colour channels of the output copies of those of the input.

    `row` and `column` are the position in the kernel that is copied.
    """
    convolution.weight[_COLOR_CHANNELS] = 0
    convolution.weight[_COLOR_CHANNELS, _COLOR_CHANNELS, row, column] = 1
    if convolution.bias is not None:
        convolution.bias[_COLOR_CHANNELS] = 0


def train_autoencoder(
    vae: AutoencoderKLTemporalDecoder, pictures: Pictures, folder: Path, steps: tuple[int, int], seed: int
) -> AutoencoderKLTemporalDecoder:
    """Train on crops of 64 pixels first, which are four times as fast, and then on whole pictures.

    Args:
        vae: trained in place.
        pictures: the training data.
        folder: for the training state.
        steps: optimizer steps on crops, and then on whole pictures.
        seed: of pictures and crops.

    Returns:
        `vae`.
    """

    def loss_of(crop_pixels: int, clips: int) -> Callable[[int], dict[str, Tensor]]:
        def loss(step: int) -> dict[str, Tensor]:
            generator = np.random.default_rng([seed, crop_pixels, step])
            x, weight = _batch(pictures, generator, clips, crop_pixels)
            return autoencoder_loss(vae, x, weight, torch.Generator().manual_seed(step))

        return loss

    if not (folder / "vae-whole.state.pt").exists():
        train("vae-crops", vae, loss_of(64, 4), folder, TrainingOptions(steps[0], learning_rate=1.5e-3,
            final_learning_rate=3e-4))  # fmt: skip
    train("vae-whole", vae, loss_of(128, 2), folder, TrainingOptions(steps[1], learning_rate=6e-4,
        save_every_steps=100))  # fmt: skip
    return vae


def autoencoder_loss(
    vae: AutoencoderKLTemporalDecoder, x: Tensor, weight: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Reconstruction loss of pixels and of their gradients, and a small KL divergence.

    Args:
        vae: the module.
        x: float32 (clips * 4, 3, height, width), -1..1.
        weight: float32 (clips * 4, 1, height, width), weights of the pixels.
        generator: of the latents' noise.

    Returns:
        "loss", and values to log.
    """
    posterior = vae.encode(x).latent_dist
    mean, deviation = posterior.mean.float(), posterior.std.float()
    noise = torch.randn(mean.shape, generator=generator)
    decoded = vae.decode(mean + deviation * noise, num_frames=FRAMES_PER_CLIP).sample.float()
    error = decoded - x
    pixel = (weight * (error.abs() + _SQUARE_WEIGHT * error**2)).mean()
    edge = sum(
        (torch.narrow(weight, dim, 1, x.shape[dim] - 1) * torch.diff(error, dim=dim).abs()).mean()
        for dim in (2, 3)
    )
    divergence = 0.5 * (mean**2 + deviation**2 - 1 - 2 * deviation.log()).mean()
    total = pixel + _EDGE_WEIGHT * edge + _KL_WEIGHT * divergence
    with torch.no_grad():
        mse = (error.clamp(-2, 2) ** 2).mean(dim=(1, 2, 3))
        psnr = (10 * torch.log10(4 / mse)).mean()
    return {"loss": total, "psnr_db": psnr, "kl": divergence, "deviation": deviation.mean(),
            "latent": mean.std()}  # fmt: skip


def _batch(
    pictures: Pictures, generator: np.random.Generator, clips: int, crop_pixels: int
) -> tuple[Tensor, Tensor]:
    """Random crops, (clips * 4, 3, crop, crop), -1..1, and weights of their pixels, higher at the mouth."""
    size = pictures.frames.shape[2]
    frames, weights = [], []
    for index in generator.integers(len(pictures.frames), size=clips):
        x1, y1, x2, y2 = pictures.boxes[index]
        weight = np.ones((size, size), np.float32)
        top, left = y1 + 0.6 * (y2 - y1), x1 + 0.25 * (x2 - x1)
        weight[int(top) : int(y2 + 3), int(left) : int(x2 - 0.25 * (x2 - x1))] += _MOUTH_WEIGHT
        corner = np.zeros(2, int)
        if crop_pixels < size:
            corner = generator.integers(0, size - crop_pixels + 1, size=2)
            if generator.random() < 0.6:  # a crop that contains the mouth
                middle = np.array([0.5 * (x1 + x2), y1 + 0.72 * (y2 - y1)])
                corner = (middle - crop_pixels * generator.uniform(0.3, 0.7, 2)).astype(int)
                corner = corner.clip(0, size - crop_pixels)
        rows = slice(int(corner[1]), int(corner[1]) + crop_pixels)
        columns = slice(int(corner[0]), int(corner[0]) + crop_pixels)
        crop = pictures.frames[index][:, rows, columns]
        crop = crop[:, :, ::-1] if (flip := generator.random() < 0.5) else crop
        weight = weight[rows, columns]
        frames.append(crop.astype(np.float32) / 127.5 - 1)
        weights.append(np.repeat((weight[:, ::-1] if flip else weight)[None], FRAMES_PER_CLIP, axis=0))
    x = torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.concatenate(weights))[:, None]


def set_latent_scale(
    vae: AutoencoderKLTemporalDecoder, pictures: Pictures, latent_scale: float, count: int = 256
) -> None:
    """Rescale the latents by changing weights, so that latents times `latent_scale` have a deviation of 1.

    The encoder's last convolution is multiplied by a factor and the decoder's first one divided by it, so
    reconstructions stay the same.

    Args:
        vae: changed in place.
        pictures: the pictures whose latents are measured.
        latent_scale: the pipeline's constant factor of latents.
        count: number of pictures to measure.
    """
    with torch.inference_mode():
        frames = torch.from_numpy(pictures.frames[:count, 0].copy()).permute(0, 3, 1, 2).float()
        latents = torch.cat([vae.encode(x / 127.5 - 1).latent_dist.mode() for x in frames.split(32)])
    factor = 1 / (latent_scale * float(latents.std()))
    with torch.no_grad():
        half = latents.shape[1]
        vae.quant_conv.weight[:half] *= factor
        vae.quant_conv.bias[:half] *= factor
        vae.quant_conv.bias[half:] += 2 * float(np.log(factor))
        vae.decoder.conv_in.weight /= factor
