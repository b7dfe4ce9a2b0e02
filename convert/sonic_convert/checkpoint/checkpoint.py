"""A checkpoint folder as Sonic's users have it on disk: where its files are and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sonic.bundle.constants import Constants
from sonic.bundle.presets import SpeedPresets
from sonic_convert.checkpoint.config import (
    override_constants,
    own_text,
    read_configs,
    read_constants,
    read_json,
    read_speeds,
)
from sonic_convert.checkpoint.contents import check_file
from sonic_convert.checkpoint.finite import check_finite
from sonic_convert.checkpoint.layout import (
    CONFIGS,
    OWN_CONFIG,
    SPEEDS,
    WEIGHTS,
    Variant,
    check_files,
    find_weights,
)
from sonic_convert.checkpoint.tensor_files import read_tensors

COMPONENTS = (
    "audio_encoder",
    "audio2token",
    "audio2bucket",
    "image_encoder",
    "vae",
    "unet",
    "frame_interpolator",
    "face_detector",
)
CONSTANTS = "constants"
"""In place of a component's name: the files that only the runtime's constants are read from."""

EMBEDDED = Path(__file__).parents[1] / "assets"
"""Checkpoints that come with this package, by name: sonic-tiny."""

DEFAULT_LICENSE = (
    "Sonic's weights are licensed CC BY-NC-SA 4.0 (non-commercial use only), Stable Video "
    "Diffusion XT's under Stability AI's community license (non-commercial without registration), "
    "and Whisper's, RIFE's and the face detector's under their authors' licenses (MIT, MIT and "
    "GPL-3.0); what is converted from them stays under all of these."
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; make one with :meth:`open`.

    Attributes:
        path: the folder that holds `Sonic/`, `stable-video-diffusion-img2vid-xt/` and so on.
        unet_config, vae_config, image_encoder_config, scheduler_config, audio_encoder_config: the
            parsed configuration files; the first two always have `norm_num_groups`, 32 unless the
            file says otherwise.
        constants: the runtime's constants: its defaults with the values of the configurations above and
            the overrides of `Sonic/config.json`.
        speeds: the presets of `Sonic/speeds.json`, a file of 'sonic-convert tune --save'; without it, those
            for checkpoints that were not tuned.
        license, name: those of `Sonic/config.json`; by default the official weights' license and "sonic".
    """

    path: Path
    unet_config: dict[str, Any]
    vae_config: dict[str, Any]
    image_encoder_config: dict[str, Any]
    scheduler_config: dict[str, Any]
    audio_encoder_config: dict[str, Any]
    constants: Constants
    speeds: SpeedPresets
    license: str
    name: str
    _files: dict[str, list[Path]] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, variant: Variant = "auto") -> Checkpoint:
        """Check that every file is there, and what it says it is, and read the configurations.

        No weights are read yet: :meth:`check_weights` does.

        Args:
            path: the checkpoint folder, or the name of one that comes with this package.
            variant: "fp16" and "fp32" take only the VAE and image encoder files with and without
                `.fp16` in their name; "auto" prefers those with, as upstream does.

        Raises:
            InputError: a file is missing, cut off, a pointer of Git LFS or a web page, or a configuration
                cannot be used; the message names it.
        """
        path = find_checkpoint(path)
        check_files(path)
        files = {
            "audio2token": [path / "Sonic/audio2token.pth"],
            "audio2bucket": [path / "Sonic/audio2bucket.pth"],
            "unet": [path / CONFIGS["unet"], path / "Sonic/unet.pth"],
            "frame_interpolator": [path / "RIFE/flownet.pkl"],
            "face_detector": [path / "yoloface_v5m.pt"],
            CONSTANTS: [path / CONFIGS["scheduler"]],
        }
        for component in WEIGHTS:
            files[component] = [path / CONFIGS[component], find_weights(path, component, variant)]
        for file in sorted({file for of_component in files.values() for file in of_component}):
            check_file(file)
        own_path = path / OWN_CONFIG
        own: dict[str, Any] = {}
        if own_path.exists():
            check_file(own_path)
            own = read_json(own_path)
            files[CONSTANTS].append(own_path)
        configs = read_configs(path)
        constants = override_constants(read_constants(configs, path), own, own_path)
        return cls(
            path=path,
            unet_config=configs["unet"],
            vae_config=configs["vae"],
            image_encoder_config=configs["image_encoder"],
            scheduler_config=configs["scheduler"],
            audio_encoder_config=configs["audio_encoder"],
            constants=constants,
            speeds=read_speeds(path / SPEEDS),
            license=own_text(own, "license", DEFAULT_LICENSE, own_path),
            name=own_text(own, "name", "sonic", own_path),
            _files=files,
        )

    def files(self, component: str) -> list[Path]:
        """The files that `component` (one of `COMPONENTS`, or `CONSTANTS`) is read from."""
        return list(self._files[component])

    def weights_file(self, component: str) -> Path:
        """The file with the tensors of `component`, one of `COMPONENTS`."""
        return self._files[component][-1]

    def check_weights(self, component: str) -> None:
        """Read all weights of `component` (all of `COMPONENTS` but the face detector) once.

        Raises:
            InputError: the file is corrupt, does not hold plain tensors, or a value is NaN or infinite.
        """
        check_finite(self.state_dict(component, dtype=None), self.weights_file(component))

    def state_dict(
        self, component: str, dtype: torch.dtype | None = torch.float32
    ) -> dict[str, torch.Tensor]:
        """The tensors of `component` (all of `COMPONENTS` but the face detector) by name.

        Names are those that the component's module uses: Whisper's and RIFE's prefixes are
        stripped, and Whisper's decoder is left out. Tensors that already have `dtype` are mapped
        from the file, not copied.

        Args:
            component: which submodel.
            dtype: what floating-point tensors are converted to; None keeps the file's.

        Raises:
            InputError: the file is corrupt or does not hold plain tensors.
        """
        keep = _NAMES.get(component, lambda name: name)
        return read_tensors(self.weights_file(component), keep, dtype)


def find_checkpoint(path: str | Path) -> Path:
    """The folder at `path` or, where there is none, the embedded checkpoint of that name."""
    path = Path(path)
    embedded = EMBEDDED / path
    return embedded if not path.exists() and len(path.parts) == 1 and embedded.is_dir() else path


def _encoder_name(name: str) -> str | None:
    name = name.removeprefix("model.")
    return name.removeprefix("encoder.") if name.startswith("encoder.") else None


def _flow_name(name: str) -> str | None:
    # Upstream takes only the names with this prefix, which a data-parallel training run leaves.
    return name.removeprefix("module.") if name.startswith("module.") else None


def _image_name(name: str) -> str | None:
    # A buffer, 0, 1, 2, ..., that versions of transformers before 4.31 stored.
    return None if name.endswith("embeddings.position_ids") else name


_NAMES: dict[str, Callable[[str], str | None]] = {
    "audio_encoder": _encoder_name,
    "frame_interpolator": _flow_name,
    "image_encoder": _image_name,
}
