"""The licences of a checkpoint, which go into its bundles: a notice, and the texts it came with."""

from __future__ import annotations

import re
from pathlib import Path

from sonic_convert.checkpoint.checkpoint import DEFAULT_LICENSE, Checkpoint

NOTICE = "NOTICE"
_FOLDERS = ("", "Sonic", "RIFE", "whisper-tiny", "stable-video-diffusion-img2vid-xt")
_LICENSE_FILE = re.compile(r"(licen[cs]e|copying|notice)([._ -].*)?", re.IGNORECASE)
_LIMIT_BYTES = 1_000_000
_PUBLISHED = """
The weights in this bundle are adapted from published ones: converted to ONNX, and in bundles of a smaller
precision rounded, by sonic-convert.

- Sonic (UNet, audio2token, audio2bucket), (c) its authors, https://github.com/jixiaozhong/Sonic:
  Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International (CC BY-NC-SA 4.0),
  https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode. Not for commercial use; what is made from it
  carries the same licence.
- Stable Video Diffusion XT (VAE, image encoder, the UNet's base), (c) Stability AI:
  Stability AI's licence for the model, https://stability.ai/license and the file LICENSE.md of
  https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt.
  "This Stability AI Model is licensed under the Stability AI Community License, Copyright (c) Stability AI
  Ltd. All Rights Reserved" applies where the weights were obtained under that licence.
- Whisper tiny (audio encoder), (c) OpenAI: MIT. RIFE (frame interpolator), (c) its authors: MIT.
  YOLOv5-face (face detector), (c) its authors: GPL-3.0.

There is no warranty, as those licences say.
"""


def notice_of(checkpoint: Checkpoint) -> str:
    """The text of a bundle's ``NOTICE``."""
    text = f"Licence of these weights: {checkpoint.license}\n"
    return text + (_PUBLISHED if checkpoint.license == DEFAULT_LICENSE else "")


def license_files(checkpoint: Path) -> dict[str, Path]:
    """The licence texts that a checkpoint holds, by their paths in a bundle: "licenses/Sonic/LICENSE"."""
    found: dict[str, Path] = {}
    for folder in _FOLDERS:
        here = checkpoint / folder
        for path in sorted(here.iterdir()) if here.is_dir() else ():
            if not (_LICENSE_FILE.fullmatch(path.name) and path.is_file()):
                continue
            if path.stat().st_size <= _LIMIT_BYTES:
                name = re.sub(r"[^A-Za-z0-9_.+-]", "_", path.name)
                found["/".join(part for part in ("licenses", folder, name) if part)] = path
    return found
