"""Writes checkpoints in the official layout."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from sonic.errors import InputError, OutputError
from sonic_convert.checkpoint.layout import OWN_CONFIG
from sonic_convert.synth.dimensions import (
    IMAGE_PREPROCESSOR_CONFIG,
    SCHEDULER_CONFIG,
    WHISPER_PREPROCESSOR_CONFIG,
    SynthDimensions,
)

Dtype = Literal["float16", "float32"]
DTYPES = {"float16": torch.float16, "float32": torch.float32}
State = dict[str, torch.Tensor]
_VIDEO_MODEL = "stable-video-diffusion-img2vid-xt"


def create_checkpoint(
    out: Path, dtype: str, overwrite: bool, write: Callable[[CheckpointWriter], None]
) -> Path:
    """Let `write` fill a folder that then appears as `out`, complete or not at all.

    Raises:
        InputError: the dtype is unknown, or `out` is a file, or it is not empty and `overwrite` is off.
        OutputError: the folder cannot be written.
    """
    if dtype not in DTYPES:
        raise InputError(f"the dtype is {dtype!r}, but should be one of {sorted(DTYPES)}")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: this is a file, but should be a new or empty folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out}: the folder is not empty; it should be a new or empty one")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            made = Path(scratch) / out.name
            write(CheckpointWriter(made, DTYPES[dtype]))
            if out.is_dir():
                # Moved aside first: it is deleted with the scratch folder, and `out` is never half deleted.
                out.rename(Path(scratch) / "replaced")
            made.rename(out)
    except OSError as error:
        raise OutputError(f"{out}: the checkpoint cannot be written ({error})") from error
    return out


@dataclass(frozen=True)
class CheckpointWriter:
    """Saves one component after another, so that only one has to be in memory; states by official name."""

    root: Path
    dtype: torch.dtype

    @property
    def _variant(self) -> str:
        return ".fp16" if self.dtype == torch.float16 else ""

    def unet(self, state: State) -> None:
        """Sonic's UNet with its adapters."""
        self._save_pickle(state, "Sonic/unet.pth")

    def video_unet(self, state: State) -> None:
        """Stable Video Diffusion's own UNet, which is not needed where `Sonic/unet.pth` is complete."""
        self._save_diffusers(state, "unet")

    def vae(self, state: State) -> None:
        """Both halves of the VAE."""
        self._save_diffusers(state, "vae")

    def image_encoder(self, state: State) -> None:
        """CLIP's vision tower."""
        self._save_safetensors(state, f"{_VIDEO_MODEL}/image_encoder/model{self._variant}.safetensors")

    def audio_encoder(self, state: State) -> None:
        """Whisper without its language head."""
        named = {f"model.{name}": value for name, value in state.items()}
        self._save_safetensors(named, "whisper-tiny/model.safetensors")

    def audio_heads(self, tokens: State, buckets: State) -> None:
        """audio2token and audio2bucket."""
        self._save_pickle(tokens, "Sonic/audio2token.pth")
        self._save_pickle(buckets, "Sonic/audio2bucket.pth")

    def frame_interpolator(self, state: State) -> None:
        """RIFE's flow network."""
        named = {f"module.{name}": value for name, value in state.items()}
        self._save_pickle(named, "RIFE/flownet.pkl")

    def face_detector(self, write: Callable[[Path], None]) -> None:
        """A TorchScript archive, which `write` saves at the path it is given."""
        write(self.root / "yoloface_v5m.pt")

    def configs(self, dimensions: SynthDimensions, own: dict[str, Any]) -> None:
        """All configuration files; `own` is this project's `Sonic/config.json`."""
        dtype = str(self.dtype).removeprefix("torch.")
        for name, values in {
            f"{_VIDEO_MODEL}/unet/config.json": dimensions.unet_config(),
            f"{_VIDEO_MODEL}/vae/config.json": dimensions.vae_config(),
            f"{_VIDEO_MODEL}/image_encoder/config.json": dimensions.image_encoder_config()
            | {"torch_dtype": dtype},
            f"{_VIDEO_MODEL}/scheduler/scheduler_config.json": SCHEDULER_CONFIG,
            f"{_VIDEO_MODEL}/feature_extractor/preprocessor_config.json": IMAGE_PREPROCESSOR_CONFIG,
            "whisper-tiny/config.json": dimensions.whisper_config() | {"torch_dtype": dtype},
            "whisper-tiny/preprocessor_config.json": WHISPER_PREPROCESSOR_CONFIG,
            OWN_CONFIG: own,
        }.items():
            text = json.dumps(values, indent=2, sort_keys=True) + "\n"
            self._path(name).write_text(text, encoding="utf-8")

    def _save_diffusers(self, state: State, folder: str) -> None:
        name = f"{_VIDEO_MODEL}/{folder}/diffusion_pytorch_model{self._variant}.safetensors"
        self._save_safetensors(state, name)

    def _save_safetensors(self, state: State, name: str) -> None:
        save_file(self._cast(state), self._path(name), metadata={"format": "pt"})

    def _save_pickle(self, state: State, name: str) -> None:
        torch.save(self._cast(state), self._path(name))

    def _cast(self, state: State) -> State:
        return {name: value.to(self.dtype).contiguous() for name, value in state.items()}

    def _path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
