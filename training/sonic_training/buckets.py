"""Trains the bucket head, which predicts head motion and mouth amplitude from how lively speech sounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonic.bundle.constants import AudioConstants
from sonic.media.audio import log_mel
from sonic_convert.modules.audio import AudioEncoderStates, AudioToBucket
from sonic_training.audio import state_windows
from sonic_training.clips import motion_buckets, random_liveliness
from sonic_training.speech import Corpus
from sonic_training.trainer import TrainingOptions, train


def train_bucket_head(
    head: AudioToBucket,
    encoder: AudioEncoderStates,
    embeddings: Tensor,
    corpus: Corpus,
    filters: NDArray[np.float32],
    constants: AudioConstants,
    folder: Path,
    options: TrainingOptions,
    seed: int,
) -> AudioToBucket:
    """Regress the motion buckets from speech, with a random portrait's embedding as a distractor.

    Args:
        head: the module to train.
        encoder: the trained audio encoder, which stays fixed.
        embeddings: (n, width), image embeddings of portraits.
        corpus: speech of varied loudness.
        filters: float32 (mel bins, frequencies), mel filters.
        constants: window, padding, scale and offset of the buckets.
        folder: for the training state.
        options: the schedule.
        seed: of speech, portraits and liveliness.

    Returns:
        `head`.
    """

    def loss(step: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, step])
        clip = corpus.clip(generator, float(generator.uniform(2, 8)))
        with torch.no_grad():
            states = encoder(torch.from_numpy(log_mel(clip.heard, filters, constants)))[0, :, -1:]
        states = states[: len(clip.heard) // constants.unit_samples * constants.states_per_unit]
        embedding = embeddings[int(generator.integers(len(embeddings)))][None].float()
        predicted = head(bucket_windows(states.float(), constants)[None], embedding)[0, :, :, 0]
        buckets = motion_buckets(*random_liveliness(generator, clip))
        target = torch.from_numpy((buckets - constants.bucket_offset) / constants.bucket_scale)
        error = ((predicted - target) ** 2).mean()
        return {"loss": error, "error": error.sqrt() * constants.bucket_scale}

    train("buckets", head, loss, folder, options)
    return head


def bucket_windows(states: Tensor, constants: AudioConstants) -> Tensor:
    """(states, 1, width) -> (frames, window, 1, width), zero-padded as in the runtime."""
    return state_windows(states, constants.bucket_padding_states, constants.bucket_window_states, constants)
