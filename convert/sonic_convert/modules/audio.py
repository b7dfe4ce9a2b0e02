"""The audio submodels: Whisper's encoder with all its states, and Sonic's two audio heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from sonic.errors import InputError
from sonic_convert.checkpoint.tensor_files import load_strict

BUCKETS_PER_FRAME = 2  # translation and expression


class AudioToToken(nn.Module):
    """Maps a window of audio states to the tokens that one frame attends to.

    Three linear layers with ReLU between them and a layer normalisation of each token.
    """

    def __init__(
        self, window_states: int, layers: int, channels: int, hidden: int, tokens: int, width: int
    ) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width
        self.proj1 = nn.Linear(window_states * layers * channels, hidden)
        self.proj2 = nn.Linear(hidden, hidden)
        self.proj3 = nn.Linear(hidden, tokens * width)
        self.norm = nn.LayerNorm(width)

    @classmethod
    def from_state_dict(
        cls,
        state: dict[str, torch.Tensor],
        source: str,
        *,
        window_states: int,
        layers: int,
        channels: int,
    ) -> AudioToToken:
        """Build the head that fits `state` and load it.

        Args:
            state: tensors by name; `source` is the file that errors name.
            window_states: audio states in one frame's window.
            layers: stacked states per position, the audio encoder's layers plus one.
            channels: width of the audio encoder.

        Raises:
            InputError: a tensor is missing, unexpected or of a shape that does not fit.
        """
        hidden = _rows(state, "proj1.weight", source)
        width = _rows(state, "norm.weight", source)
        rows = _rows(state, "proj3.weight", source)
        if not width or rows % width:
            raise InputError(
                f"{source}: 'proj3.weight' has {rows} rows, which should be a multiple of the "
                f"token width {width} that 'norm.weight' gives"
            )
        _check_columns(state, source, window_states * layers * channels)
        with torch.device("meta"):
            module = cls(window_states, layers, channels, hidden, rows // width, width)
        load_strict(module, state, source)
        return module.eval()

    def forward(self, audio_windows: torch.Tensor) -> torch.Tensor:
        """(1, frames, window states, layers, channels) -> (1, frames, tokens, width)."""
        values = torch.relu(self.proj1(audio_windows.flatten(2)))
        values = torch.relu(self.proj2(values))
        return self.norm(self.proj3(values).unflatten(-1, (self.tokens, self.width)))


class AudioToBucket(nn.Module):
    """Maps a window of last-layer audio states and the image embedding to the two motion buckets.

    Three linear layers with SiLU between them.
    """

    def __init__(
        self, window_states: int, channels: int, image_channels: int, hidden: int, buckets: int
    ) -> None:
        super().__init__()
        self.proj1 = nn.Linear(window_states * channels + image_channels, hidden)
        self.proj2 = nn.Linear(hidden, hidden)
        self.proj3 = nn.Linear(hidden, buckets)

    @classmethod
    def from_state_dict(
        cls,
        state: dict[str, torch.Tensor],
        source: str,
        *,
        window_states: int,
        channels: int,
        image_channels: int,
    ) -> AudioToBucket:
        """Build the head that fits `state` and load it.

        Args:
            state: tensors by name; `source` is the file that errors name.
            window_states: audio states in one frame's window.
            channels: width of the audio encoder.
            image_channels: width of the image embedding.

        Raises:
            InputError: a tensor is missing, unexpected or of a shape that does not fit.
        """
        hidden = _rows(state, "proj1.weight", source)
        _check_columns(state, source, window_states * channels + image_channels)
        with torch.device("meta"):
            module = cls(window_states, channels, image_channels, hidden, BUCKETS_PER_FRAME)
        load_strict(module, state, source)
        return module.eval()

    def forward(self, audio_windows: torch.Tensor, image_embedding: torch.Tensor) -> torch.Tensor:
        """(1, frames, window states, 1, channels), (1, image channels) -> (1, frames, 2, 1)."""
        audio = audio_windows.flatten(2)
        image = image_embedding.unsqueeze(1).expand(-1, audio.shape[1], -1)
        values = functional.silu(self.proj1(torch.cat([audio, image], dim=-1)))
        return self.proj3(functional.silu(self.proj2(values))).unsqueeze(-1)


class AudioEncoderStates(nn.Module):
    """Whisper's encoder with every hidden state, in the order the audio heads were trained on.

    The states are what transformers 4.43 called `hidden_states`: the embedding with its positions,
    then the output of each layer, the last of which has passed the final layer normalisation (so
    it is also `last_hidden_state`). They are gathered here, because transformers gathers different ones
    in different versions.
    """

    def __init__(self, encoder: WhisperEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    @classmethod
    def from_state_dict(
        cls, config: dict[str, Any], state: dict[str, torch.Tensor], source: str
    ) -> AudioEncoderStates:
        """Build the encoder that `config` (Whisper's config.json) describes and load `state`.

        Raises:
            InputError: a tensor is missing, unexpected or mis-shaped; `source` is named.
        """
        settings = WhisperConfig.from_dict(dict(config))
        settings._attn_implementation = "sdpa"
        with torch.device("meta"):
            encoder = WhisperEncoder(settings)
        load_strict(encoder, state, source)
        return cls(encoder).eval()

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """(1, mel bins, 2 * positions) -> (1, positions, layers + 1, width)."""
        encoder = self.encoder
        values = functional.gelu(encoder.conv1(log_mel))
        values = functional.gelu(encoder.conv2(values)).transpose(1, 2)
        values = values + encoder.embed_positions.weight
        states = [values]
        for layer in encoder.layers:
            values = layer(values, None)
            states.append(values)
        states[-1] = encoder.layer_norm(values)
        return torch.stack(states, dim=2)


def _rows(state: dict[str, torch.Tensor], name: str, source: str) -> int:
    tensor = state.get(name)
    if tensor is None or tensor.ndim == 0:
        raise InputError(f"{source}: the tensor '{name}' should be there, but is missing")
    return int(tensor.shape[0])


def _check_columns(state: dict[str, torch.Tensor], source: str, expected: int) -> None:
    shape = tuple(state["proj1.weight"].shape)
    if len(shape) != 2 or shape[1] != expected:
        raise InputError(
            f"{source}: 'proj1.weight' has the shape {shape}, but {expected} columns would fit the "
            "audio encoder and the image encoder of this checkpoint"
        )
