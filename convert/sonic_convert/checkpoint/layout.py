"""The files of a checkpoint: where they are, what they hold, and where users get them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sonic.errors import InputError

Variant = Literal["auto", "fp16", "fp32"]

_VIDEO_MODEL = "stable-video-diffusion-img2vid-xt"
_SONIC = "Hugging Face repository LeonJoe13/Sonic"
_SVD = "Hugging Face repository stabilityai/stable-video-diffusion-img2vid-xt"
_WHISPER = "Hugging Face repository openai/whisper-tiny"

# What each fixed file is and where users get it.
FILES: dict[str, tuple[str, str]] = {
    "Sonic/unet.pth": ("Sonic's UNet with its audio adapters", _SONIC),
    "Sonic/audio2token.pth": ("Sonic's audio token head", _SONIC),
    "Sonic/audio2bucket.pth": ("Sonic's motion bucket head", _SONIC),
    "RIFE/flownet.pkl": ("RIFE's frame interpolator", _SONIC),
    "yoloface_v5m.pt": ("the YOLOv5-face detector", _SONIC),
    f"{_VIDEO_MODEL}/unet/config.json": ("the UNet's configuration", _SVD),
    f"{_VIDEO_MODEL}/vae/config.json": ("the VAE's configuration", _SVD),
    f"{_VIDEO_MODEL}/image_encoder/config.json": ("the image encoder's configuration", _SVD),
    f"{_VIDEO_MODEL}/scheduler/scheduler_config.json": ("the sampler's configuration", _SVD),
    "whisper-tiny/config.json": ("the audio encoder's configuration", _WHISPER),
}


@dataclass(frozen=True)
class WeightFiles:
    """Weights that come under several names.

    Attributes:
        folder: in the checkpoint.
        safetensors_stem, bin_stem: file names without ``.fp16`` and the suffixes .safetensors and .bin.
        what: what the weights are, for messages.
        where: where users get them.
        has_variants: whether upstream loads ``.fp16`` files too.
    """

    folder: str
    safetensors_stem: str
    bin_stem: str
    what: str
    where: str
    has_variants: bool = True


WEIGHTS = {
    "vae": WeightFiles(
        f"{_VIDEO_MODEL}/vae", "diffusion_pytorch_model", "diffusion_pytorch_model", "the VAE", _SVD
    ),
    "image_encoder": WeightFiles(
        f"{_VIDEO_MODEL}/image_encoder", "model", "pytorch_model", "the image encoder", _SVD
    ),
    "audio_encoder": WeightFiles(
        "whisper-tiny", "model", "pytorch_model", "the audio encoder", _WHISPER, has_variants=False
    ),
}
CONFIGS = {
    "unet": f"{_VIDEO_MODEL}/unet/config.json",
    "vae": f"{_VIDEO_MODEL}/vae/config.json",
    "image_encoder": f"{_VIDEO_MODEL}/image_encoder/config.json",
    "scheduler": f"{_VIDEO_MODEL}/scheduler/scheduler_config.json",
    "audio_encoder": "whisper-tiny/config.json",
}
SPEEDS = "Sonic/speeds.json"  # presets of its own, optional
OWN_CONFIG = "Sonic/config.json"


def check_files(root: Path) -> None:
    """Raise an InputError that names the first file of a fixed name that is missing."""
    if not root.is_dir():
        raise InputError(
            f"{root}: this is not a folder; it should be the checkpoints folder that holds "
            "'Sonic' and 'stable-video-diffusion-img2vid-xt'"
        )
    for name, (what, where) in FILES.items():
        if not (root / name).exists():
            raise InputError(f"{root / name}: {what} is missing; it comes from the {where}")


def find_weights(root: Path, component: str, variant: Variant) -> Path:
    """The weights file of one of `WEIGHTS`, whatever its name.

    Raises:
        InputError: none of them is there, or `variant` is not one of the three.
    """
    if variant not in ("auto", "fp16", "fp32"):
        raise InputError(f"the variant is {variant!r}, but should be 'auto', 'fp16' or 'fp32'")
    files = WEIGHTS[component]
    half, plain = [".fp16"], [""]
    infixes = {"auto": half + plain, "fp16": half, "fp32": plain}[variant] if files.has_variants else plain
    names = [f"{files.safetensors_stem}{infix}.safetensors" for infix in infixes]
    names += [f"{files.bin_stem}{infix}.bin" for infix in infixes]
    folder = root / files.folder
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder / names[0]}: {files.what} is missing (looked for {', '.join(names)}); it comes "
        f"from the {files.where}"
    )
