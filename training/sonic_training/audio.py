"""The audio encoder and the token head: trained to know how a mouth moves with the speech they hear."""

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

_STATES_A_SECOND = 50
_SECONDS = 30.0
_TARGETS = 3  # opening, spread, level
NDArrayFloat = NDArray[np.float32]


@dataclass(frozen=True)
class Listening:
    """One 30-second window as the encoder hears it, and what the mouth does at its 50 states a second."""

    log_mel: NDArrayFloat
    targets: NDArrayFloat  # (states, 3)
    states: int  # before the zero padding


def build_encoder(config: dict[str, Any], seed: int) -> AudioEncoderStates:
    """Whisper's encoder, randomly initialised (its positions are sinusoids)."""
    torch.manual_seed(seed)
    settings = WhisperConfig.from_dict(dict(config))
    settings._attn_implementation = "sdpa"
    return AudioEncoderStates(WhisperEncoder(settings))


class SpeechModel(nn.Module):
    """Encoder, token head, and linear read-outs that exist only for training."""

    def __init__(self, encoder: AudioEncoderStates, tokens: AudioToToken, width: int) -> None:
        super().__init__()
        self.encoder, self.tokens = encoder, tokens
        self.read_states = nn.Linear(width, _TARGETS)
        self.read_tokens = nn.Linear(tokens.tokens * tokens.width, _TARGETS)


def listen(
    clip_heard: NDArrayFloat, clip_clean: NDArrayFloat, filters: NDArrayFloat, constants: AudioConstants
) -> Listening:
    """Features and targets of a clip of up to 30 seconds, 16 kHz."""
    states = len(clip_heard) // constants.unit_samples * constants.states_per_unit
    level = np.sqrt(np.mean(clip_heard**2) + 1e-10)
    targets = np.stack(
        [
            mouth.opening(clip_clean, states, _STATES_A_SECOND),
            mouth.spread(clip_clean, states, _STATES_A_SECOND),
            np.full(states, np.clip(np.log10(level) + 1.5, -2, 2)),
        ],
        axis=1,
    )
    return Listening(log_mel(clip_heard, filters, constants), targets.astype(np.float32), states)


def train_audio(
    model: SpeechModel,
    corpus: Corpus,
    filters: NDArrayFloat,
    constants: AudioConstants,
    folder: Path,
    options: TrainingOptions,
    seed: int,
) -> SpeechModel:
    """Regress opening, spread and loudness from the states and from the tokens of each frame."""

    def loss(step: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, step])
        # Shorter ones are most of what users have; the rest of the window is then silent.
        seconds = float(_SECONDS if generator.random() < 0.3 else generator.uniform(2, 12))
        clip = corpus.clip(generator, seconds)
        heard = listen(clip.heard, clip.clean, filters, constants)
        states = model.encoder(torch.from_numpy(heard.log_mel))[0, : heard.states].float()
        targets = torch.from_numpy(heard.targets)
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
    """(states, layers, width) -> (frames, window, layers, width), padded with zeros as the runtime does."""
    return state_windows(states, constants.token_padding_states, constants.token_window_states, constants)


def state_windows(states: Tensor, padding: tuple[int, int], window: int, constants: AudioConstants) -> Tensor:
    """(states, layers, width) -> (frames, window, layers, width), of a sequence padded with zeros."""
    padded = functional.pad(states, (0, 0, 0, 0, *padding))
    frames = len(states) // constants.states_per_frame
    return padded.unfold(0, window, constants.states_per_frame)[:frames].movedim(-1, 1)
