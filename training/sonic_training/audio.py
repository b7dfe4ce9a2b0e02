"""Trains the audio encoder and the token head to represent how speech moves a mouth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from sonic.bundle.constants import AudioConstants
from sonic.media.audio import log_mel
from sonic_convert.modules.audio import AudioEncoderStates, AudioToToken
from sonic_training import mouth
from sonic_training.speech import Corpus
from sonic_training.trainer import TrainingOptions, train

_STATES_PER_SECOND = 50
_WINDOW_SECONDS = 30.0
_TARGETS = 3  # opening, spread, level
NDArrayFloat = NDArray[np.float32]


@dataclass(frozen=True)
class SpeechExample:
    """Input and targets of the audio encoder for one window of 30 seconds.

    Attributes:
        log_mel: float32 (1, mel bins, time), the encoder's input.
        targets: float32 (states, 3), mouth opening, lip spread and level at the encoder's 50 states per
            second.
        states: number of states before the zero padding.
    """

    log_mel: NDArrayFloat
    targets: NDArrayFloat
    states: int


def build_encoder(config: dict[str, Any], seed: int) -> AudioEncoderStates:
    """Whisper's encoder, randomly initialised except for its sinusoidal position embeddings.

    Args:
        config: of the official `WhisperConfig`.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    settings = WhisperConfig.from_dict(dict(config))
    settings._attn_implementation = "sdpa"
    return AudioEncoderStates(WhisperEncoder(settings))


class SpeechModel(nn.Module):
    """Encoder and token head, with linear probes that are only used for training."""

    def __init__(self, encoder: AudioEncoderStates, tokens: AudioToToken, width: int) -> None:
        super().__init__()
        self.encoder, self.tokens = encoder, tokens
        self.read_states = nn.Linear(width, _TARGETS)
        self.read_tokens = nn.Linear(tokens.tokens * tokens.width, _TARGETS)


def speech_example(
    heard: NDArrayFloat, clean: NDArrayFloat, filters: NDArrayFloat, constants: AudioConstants
) -> SpeechExample:
    """Features and targets of a clip of up to 30 seconds.

    Args:
        heard: float32 (samples,), mono at 16 kHz, the speech given to the encoder.
        clean: float32 (samples,), the same without noise, which determines the mouth.
        filters: float32 (mel bins, frequencies), mel filters.
        constants: of the audio features.
    """
    states = len(heard) // constants.unit_samples * constants.states_per_unit
    level = np.sqrt(np.mean(heard**2) + 1e-10)
    targets = np.stack(
        [
            mouth.opening(clean, states, _STATES_PER_SECOND),
            mouth.spread(clean, states, _STATES_PER_SECOND),
            np.full(states, np.clip(np.log10(level) + 1.5, -2, 2)),
        ],
        axis=1,
    )
    return SpeechExample(log_mel(heard, filters, constants), targets.astype(np.float32), states)


def train_audio(
    model: SpeechModel,
    corpus: Corpus,
    filters: NDArrayFloat,
    constants: AudioConstants,
    folder: Path,
    options: TrainingOptions,
    seed: int,
) -> SpeechModel:
    """Regress opening, spread and level from the encoder's states and from the tokens of each frame.

    Args:
        model: encoder, token head and probes, trained in place.
        corpus: the speech.
        filters: float32 (mel bins, frequencies), mel filters.
        constants: windows and padding of the audio tokens.
        folder: for the training state.
        options: the schedule.
        seed: of the clips.

    Returns:
        `model`.
    """

    def loss(step: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, step])
        # Most recordings of users are shorter than a window, whose rest is then silent.
        seconds = float(_WINDOW_SECONDS if generator.random() < 0.3 else generator.uniform(2, 12))
        clip = corpus.clip(generator, seconds)
        example = speech_example(clip.heard, clip.clean, filters, constants)
        states = model.encoder(torch.from_numpy(example.log_mel))[0, : example.states].float()
        targets = torch.from_numpy(example.targets)
        windows = token_windows(states, constants)
        tokens = model.tokens(windows[None])[0]
        frame_targets = targets[:: constants.states_per_frame][: len(windows)]
        weights = torch.tensor([1.0, 0.3, 0.05])
        from_states = ((model.read_states(states[:, -1]) - targets) ** 2).mean(dim=0)
        from_tokens = ((model.read_tokens(tokens.flatten(1)) - frame_targets) ** 2).mean(dim=0)
        return {
            "loss": (weights * (from_states + from_tokens)).sum(),
            "opening": from_tokens[0].sqrt(),
            "spread": from_tokens[1].sqrt(),
            "level": from_tokens[2].sqrt(),
        }

    train("audio", model, loss, folder, options)
    return model


def token_windows(states: Tensor, constants: AudioConstants) -> Tensor:
    """(states, layers, width) -> (frames, window, layers, width), zero-padded as in the runtime."""
    return state_windows(states, constants.token_padding_states, constants.token_window_states, constants)


def state_windows(states: Tensor, padding: tuple[int, int], window: int, constants: AudioConstants) -> Tensor:
    """(states, layers, width) -> (frames, window, layers, width), the windows of the zero-padded states."""
    padded = functional.pad(states, (0, 0, 0, 0, *padding))
    frames = len(states) // constants.states_per_frame
    return padded.unfold(0, window, constants.states_per_frame)[:frames].movedim(-1, 1)
