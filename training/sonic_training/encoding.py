"""Encodes drawn clips with the frozen submodels and stores the result, on which the denoiser trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from numpy.typing import NDArray
from torch import Tensor

from sonic.bundle.constants import AudioConstants
from sonic.media.audio import log_mel
from sonic.media.portrait import resize_mask
from sonic_convert.modules.audio import AudioEncoderStates
from sonic_convert.modules.image import ImageEncoder
from sonic_training.audio import token_windows
from sonic_training.denoiser import EncodedClips
from sonic_training.trainer import save_atomically


def encode_clips(
    files: list[Path],
    folder: Path,
    vae: AutoencoderKLTemporalDecoder,
    latent_scale: float,
    audio_encoder: AudioEncoderStates,
    image_encoder: ImageEncoder,
    filters: NDArray[np.float32],
    constants: AudioConstants,
) -> EncodedClips:
    """Encode the files of clips that are not encoded yet, and load all encoded clips into memory.

    Args:
        files: of `sonic_training.clips.draw_clips`.
        folder: where the encoded clips are stored.
        vae: the trained autoencoder.
        latent_scale: factor of the latents.
        audio_encoder, image_encoder: the trained encoders.
        filters: float32 (mel bins, frequencies), mel filters.
        constants: windows and padding of the audio tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for file in files:
        path = folder / f"{file.stem}.pt"
        if not path.exists():
            with torch.inference_mode(), np.load(file) as clips:
                save_atomically(
                    _encode(clips, vae, latent_scale, audio_encoder, image_encoder, filters, constants),
                    path,
                )
            print(f"encoded {path.name}", flush=True)
        parts.append(torch.load(path, weights_only=True))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    levels = sorted(name for name in joined if name.startswith("mask_"))
    return EncodedClips(
        masks=tuple(joined[name] for name in levels),
        **{name: value for name, value in joined.items() if not name.startswith("mask_")},
    )


def _encode(
    clips: np.lib.npyio.NpzFile,
    vae: AutoencoderKLTemporalDecoder,
    latent_scale: float,
    audio_encoder: AudioEncoderStates,
    image_encoder: ImageEncoder,
    filters: NDArray[np.float32],
    constants: AudioConstants,
) -> dict[str, Tensor]:
    latents, references, windows, mouths = [], [], [], []
    for frames, reference, heard, box in zip(
        clips["frames"], clips["reference"], clips["heard"], clips["mouth_box"], strict=True
    ):
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(x).latent_dist.mode().half() * latent_scale)
        references.append(vae.encode(torch.from_numpy(reference)[None]).latent_dist.mode()[0].half())
        states = audio_encoder(torch.from_numpy(log_mel(heard, filters, constants)))[0]
        states = states[: len(heard) // constants.unit_samples * constants.states_per_unit]
        windows.append(token_windows(states, constants)[: len(frames)].half())
        mouths.append(_mouth_mask(box, x.shape[-1], latents[-1].shape[-1]))
    masks = torch.from_numpy(clips["face_mask"])
    side = latents[0].shape[-1]
    levels = {
        f"mask_{level}": torch.stack(
            [
                torch.from_numpy(resize_mask(mask[None, None].numpy(), side >> level, side >> level))[0]
                for mask in masks
            ]
        ).half()
        for level in range(4)
    }
    embeddings = [image_encoder(torch.from_numpy(x)[None])[0] for x in clips["image_encoder_input"]]
    return {
        "latents": torch.stack(latents),
        "references": torch.stack(references),
        "image_embeddings": torch.stack(embeddings).half(),
        "audio_windows": torch.stack(windows),
        "buckets": torch.from_numpy(clips["buckets"]),
        "mouths": torch.stack(mouths),
        **levels,
    }


def _mouth_mask(box: NDArray[np.float32], pixels: int, side: int) -> Tensor:
    """float16 (1, side, side), 1 inside the mouth's box, which is in pixels of a picture `pixels` wide."""
    x1, y1, x2, y2 = (box * (side / pixels)).tolist()
    mask = torch.zeros(1, side, side, dtype=torch.float16)
    mask[:, int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = 1
    return mask
