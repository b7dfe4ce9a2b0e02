"""The VAE: pictures of 128 pixels to latents of 16 x 16 x 4 and back."""

from __future__ import annotations

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
from torch.nn import functional

from sonic_convert.modules.groups import set_group_count
from sonic_training.pictures import FRAMES_A_CLIP, Pictures
from sonic_training.trainer import TrainingOptions, train

# One group: a group of few channels would lose its mean, and with it flat colours.
GROUPS = 1
_KL_WEIGHT = 1e-4
_EDGE_WEIGHT = 1.0
_MOUTH_WEIGHT = 2.0
_SQUARE_WEIGHT = 4.0
_START_LOG_VARIANCE = -6.0
_PAIRS = range(6)  # the channels that carry the three colours and their negatives at the start


def build(config: dict[str, Any], seed: int) -> AutoencoderKLTemporalDecoder:
    """diffusers' class with this model's number of groups, randomly initialised."""
    torch.manual_seed(seed)
    config = {key: value for key, value in config.items() if key != "norm_num_groups"}
    vae = AutoencoderKLTemporalDecoder.from_config(config)
    set_group_count(vae, GROUPS)
    start_as_blur(vae)
    return vae


def start_as_blur(vae: AutoencoderKLTemporalDecoder) -> None:
    """Initialise the path past all residual branches as a blur: averages down, repeats up.

    Each colour travels as a pair (x, -x), as silu(x) - silu(-x) = x takes it through the activations
    before the last convolutions. Training then starts from a picture of 16 x 16 flat patches in the
    right colours, which normalised layers are otherwise slow to find.
    """
    pair = torch.tensor([1.0, -1.0])
    with torch.no_grad():
        for module in (*vae.encoder.modules(), *vae.decoder.modules()):
            if isinstance(module, ResnetBlock2D | TemporalResnetBlock):
                module.conv2.weight.zero_()
                module.conv2.bias.zero_()
                if module.conv_shortcut is not None:
                    _pass(module.conv_shortcut, 0, 0)
            elif isinstance(module, Attention):
                module.to_out[0].weight.zero_()
            elif isinstance(module, Upsample2D):
                _pass(module.conv, 1, 1)
            elif isinstance(module, Downsample2D):
                _pass(module.conv, 0, 0)  # the mean of 2 x 2 pixels
                for row, column in ((0, 1), (1, 0), (1, 1)):
                    module.conv.weight[_PAIRS, _PAIRS, row, column] = 0.25
                module.conv.weight[_PAIRS, _PAIRS, 0, 0] = 0.25
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


def _pass(convolution: torch.nn.Conv2d, row: int, column: int) -> None:
    """Let the colours' channels through unchanged and keep all others out of them."""
    convolution.weight[_PAIRS] = 0
    convolution.weight[_PAIRS, _PAIRS, row, column] = 1
    if convolution.bias is not None:
        convolution.bias[_PAIRS] = 0


def train_autoencoder(
    vae: AutoencoderKLTemporalDecoder, pictures: Pictures, folder: Path, steps: tuple[int, int], seed: int
) -> AutoencoderKLTemporalDecoder:
    """Train on crops of 64 pixels first (four times as many a second), then on whole pictures."""

    def loss_of(crop_pixels: int, clips: int) -> Any:
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
    """L1 of pixels and of their differences, more at the mouth, and a small KL divergence.

    Args:
        vae: the module.
        x: (clips * 4, 3, H, W) in -1..1.
        weight: (clips * 4, 1, H, W).
        generator: of the latents' noise.
    """
    posterior = vae.encode(x).latent_dist
    mean, deviation = posterior.mean.float(), posterior.std.float()
    noise = torch.randn(mean.shape, generator=generator)
    decoded = vae.decode(mean + deviation * noise, num_frames=FRAMES_A_CLIP).sample.float()
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
            if generator.random() < 0.6:  # a crop that holds the mouth
                middle = np.array([0.5 * (x1 + x2), y1 + 0.72 * (y2 - y1)])
                corner = (middle - crop_pixels * generator.uniform(0.3, 0.7, 2)).astype(int)
                corner = corner.clip(0, size - crop_pixels)
        rows = slice(int(corner[1]), int(corner[1]) + crop_pixels)
        columns = slice(int(corner[0]), int(corner[0]) + crop_pixels)
        cut = pictures.frames[index][:, rows, columns]
        cut = cut[:, :, ::-1] if (flip := generator.random() < 0.5) else cut
        weight = weight[rows, columns]
        frames.append(cut.astype(np.float32) / 127.5 - 1)
        weights.append(np.repeat((weight[:, ::-1] if flip else weight)[None], FRAMES_A_CLIP, axis=0))
    x = torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.concatenate(weights))[:, None]


def set_latent_scale(
    vae: AutoencoderKLTemporalDecoder, pictures: Pictures, latent_scale: float, count: int = 256
) -> None:
    """Fold a factor into the weights, so that latents times `latent_scale` have a deviation of 1.

    What the VAE computes stays the same; the last convolution of the encoder grows by the factor by
    which the first one of the decoder shrinks.
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


def reconstruct(vae: AutoencoderKLTemporalDecoder, frames: np.ndarray) -> np.ndarray:
    """uint8 (n, H, W, 3) through the mode of the latents and back."""
    x = torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.inference_mode():
        latents = vae.encode(x).latent_dist.mode()
        decoded = vae.decode(latents, num_frames=len(frames)).sample
    pixels = functional.hardtanh(decoded).permute(0, 2, 3, 1).numpy()
    return np.rint((pixels + 1) * 127.5).astype(np.uint8)
