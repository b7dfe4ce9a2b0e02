"""Weights of a checkpoint, in either format."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.errors import SonicError
from sonic_convert.checkpoint.tensor_files import read_tensors


def one(data: bytes) -> None:
    name = "weights.safetensors" if data[8:9] == b"{" else "weights.pth"
    try:
        read_tensors(in_file(data, name))
    except SonicError:
        return
