"""Widths and counts of a checkpoint, which determine the shapes of the submodels' inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sonic.errors import InputError
from sonic_convert.checkpoint.checkpoint import COMPONENTS, CONSTANTS, Checkpoint

_AUDIO_HEAD = "audio2token"  # the number of its tokens is not in any configuration


@dataclass(frozen=True)
class Dimensions:
    """Widths and counts of one checkpoint, from its configurations and tensor shapes."""

    audio_layers: int
    audio_width: int
    mel_bins: int
    mel_frames: int
    token_window: int
    bucket_window: int
    tokens: int
    context_width: int
    image_pixels: int
    latent_channels: int
    sample_channels: int
    levels: int


def read_dimensions(checkpoint: Checkpoint) -> Dimensions:
    """Read a checkpoint's dimensions.

    Raises:
        InputError: the audio head's tokens do not have the width that the UNet attends to.
    """
    constants = checkpoint.constants
    head = checkpoint.state_dict(_AUDIO_HEAD, dtype=None)
    source = checkpoint.weights_file(_AUDIO_HEAD)
    context_width = int(checkpoint.unet_config["cross_attention_dim"])
    rows = [head[name].shape[0] if name in head else 0 for name in ("proj3.weight", "norm.weight")]
    if rows[1] != context_width or rows[0] % context_width:
        raise InputError(
            f"{source}: 'norm.weight' has {rows[1]} and 'proj3.weight' {rows[0]} rows, but should have "
            f"{context_width} (the UNet's cross_attention_dim) and a multiple of it"
        )
    return Dimensions(
        audio_layers=int(checkpoint.audio_encoder_config["encoder_layers"]) + 1,
        audio_width=int(checkpoint.audio_encoder_config["d_model"]),
        mel_bins=constants.audio.mel_bins,
        mel_frames=constants.audio.window_samples // constants.audio.hop_samples,
        token_window=constants.audio.token_window_states,
        bucket_window=constants.audio.bucket_window_states,
        tokens=rows[0] // context_width,
        context_width=context_width,
        image_pixels=constants.portrait.image_encoder_pixels,
        latent_channels=constants.video.latent_channels,
        sample_channels=int(checkpoint.unet_config["in_channels"]),
        levels=len(checkpoint.unet_config["block_out_channels"]),
    )


def dimension_files(checkpoint: Checkpoint) -> set[Path]:
    """The files that the dimensions and the constants come from: the configurations and the audio head."""
    files = {path for component in (*COMPONENTS, CONSTANTS) for path in checkpoint.files(component)}
    return {path for path in files if path.suffix == ".json"} | set(checkpoint.files(_AUDIO_HEAD))
