"""Trains the frame interpolator, a narrow optical-flow network that predicts the frame between two others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sonic.bundle.constants import Constants
from sonic_convert.modules.interpolator import FrameInterpolator
from sonic_training.clips import ClipOptions, draw_clips
from sonic_training.trainer import TrainingOptions, train

_FRAMES = 20
_TRIPLETS_PER_STEP = 6
_MOTION_WEIGHT = 20.0


def build(channels: int, seed: int) -> FrameInterpolator:
    """RIFE's flow network, randomly initialised such that flows start near zero.

    Args:
        channels: width of the network.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    interpolator = FrameInterpolator(channels)
    with torch.no_grad():
        for block in (interpolator.block0, interpolator.block1, interpolator.block2):
            for head in (block.conv1, block.conv2):
                last = head[-1]
                assert isinstance(last, nn.ConvTranspose2d) and last.bias is not None
                last.weight.mul_(0.1)
                last.bias.zero_()
    return interpolator


def train_interpolator(
    interpolator: FrameInterpolator,
    work: Path,
    corpus: Path,
    clips: int,
    options: TrainingOptions,
    seed: int,
) -> FrameInterpolator:
    """Train on triplets of consecutive frames of clips drawn at the finished video's frame rate.

    Args:
        interpolator: trained in place.
        work: folder for the clips and the training state.
        corpus: folder of the speech corpus.
        clips: number of clips to draw.
        options: the schedule.
        seed: of clips and triplets.

    Returns:
        `interpolator`.
    """
    rate_hz = Constants().video.frame_rate_hz
    files = draw_clips(
        work / "smooth-clips", corpus, seed, clips, ClipOptions(frames=_FRAMES, frame_rate_hz=rate_hz)
    )
    parts = []
    for file in files:
        with np.load(file) as drawn:
            parts.append(drawn["frames"])
    frames = np.concatenate(parts)

    def loss(step: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, step])
        chosen = generator.integers(len(frames), size=_TRIPLETS_PER_STEP)
        starts = generator.integers(_FRAMES - 2, size=_TRIPLETS_PER_STEP)
        triplets = frames[chosen[:, None], starts[:, None] + np.arange(3)]
        x = torch.from_numpy(triplets).permute(1, 0, 4, 2, 3).float() / 255
        middle = interpolator(x[0], x[2]).float()
        error = (middle - x[1]).abs()
        blend = (0.5 * (x[0] + x[2]) - x[1]).abs()
        # Most of a frame does not move; there a blend of both frames is right and no motion is learned.
        weight = 1 + _MOTION_WEIGHT * (blend.amax(dim=1, keepdim=True) > 0.02)
        return {"loss": (weight * error).mean(), "against_blend": error.sum() / (blend.sum() + 1e-6)}

    # The teacher is part of the checkpoint but not of the prediction, so it keeps its initial weights.
    for parameter in interpolator.block_tea.parameters():
        parameter.requires_grad_(False)
    train("interpolator", interpolator, loss, work / "training", options)
    return interpolator
