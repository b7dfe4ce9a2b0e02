"""Trains the image encoder, a small CLIP vision tower, to represent who is in a portrait, and where."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sonic.bundle.constants import PortraitConstants
from sonic_convert.modules.image import ImageEncoder
from sonic_training.actors import draw_poses, head_motion, random_framing, random_look
from sonic_training.clips import look_targets
from sonic_training.trainer import TrainingOptions, train

_PICTURES_PER_STEP = 32
_DRAWN_PIXELS = 128


class LookReader(nn.Module):
    """The encoder, with a linear probe for the look that is only used for training."""

    def __init__(self, encoder: ImageEncoder, width: int, targets: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.read = nn.Linear(width, targets)


def build(config: dict[str, Any], seed: int) -> ImageEncoder:
    """CLIP's vision tower, randomly initialised.

    Args:
        config: of `CLIPVisionConfig`.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    settings = CLIPVisionConfig.from_dict(dict(config))
    settings._attn_implementation = "sdpa"
    return ImageEncoder(CLIPVisionModelWithProjection(settings))


def train_image_encoder(
    encoder: ImageEncoder,
    constants: PortraitConstants,
    folder: Path,
    portraits: int,
    options: TrainingOptions,
    seed: int,
) -> ImageEncoder:
    """Regress colours, hair, and the face's position and size (`look_targets`) from the embedding.

    Args:
        encoder: trained in place.
        constants: size and normalisation of the encoder's input.
        folder: for the training state.
        portraits: number of drawn portraits.
        options: the schedule.
        seed: of the portraits.

    Returns:
        `encoder`, in evaluation mode.
    """
    generator = np.random.default_rng(seed)
    width = len(look_targets(random_look(generator), random_framing(generator, _DRAWN_PIXELS)))
    model = LookReader(encoder, encoder.clip.config.projection_dim, width)
    draw = cache(_draw)  # called in the first step only, as a finished encoder needs no portraits

    def loss(step: int) -> dict[str, Tensor]:
        inputs, targets = draw(constants, portraits, seed)
        generator = np.random.default_rng([seed, step])
        chosen = torch.from_numpy(generator.integers(len(inputs), size=_PICTURES_PER_STEP))
        pixels = inputs[chosen].float()
        pixels = pixels + 0.02 * torch.from_numpy(generator.standard_normal(pixels.shape, np.float32))
        embedding = model.encoder(pixels)
        error = ((model.read(embedding) - targets[chosen]) ** 2).mean()
        # Keeps embeddings near unit RMS, a suitable scale for the denoiser's attention.
        size = (embedding.pow(2).mean() - 1) ** 2
        return {"loss": error + 0.01 * size, "error": error.sqrt(), "size": embedding.pow(2).mean()}

    train("image-encoder", model, loss, folder, options)
    return encoder.eval()


def _draw(constants: PortraitConstants, portraits: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs of the encoder, float16 (portraits, 3, side, side), and targets, (portraits, targets)."""
    side = constants.image_encoder_pixels
    mean = np.asarray(constants.image_encoder_mean, np.float32)
    deviation = np.asarray(constants.image_encoder_std, np.float32)
    inputs, targets = [], []
    for index in range(portraits):
        generator = np.random.default_rng([seed, 5, index])
        look, framing = random_look(generator), random_framing(generator, _DRAWN_PIXELS)
        pose = head_motion(generator, 1, 12.5, 0.5)[0]
        picture = Image.fromarray(draw_poses(look, [pose], framing)[0])
        pixels = np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS), np.float32) / 255
        inputs.append(torch.from_numpy((pixels - mean) / deviation).permute(2, 0, 1).half())
        targets.append(torch.from_numpy(look_targets(look, framing)))
    return torch.stack(inputs), torch.stack(targets)
