"""Initial noise, a .npy file."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.diffusion.noise import check_noise, load_noise
from sonic.errors import SonicError


def one(data: bytes) -> None:
    try:
        check_noise(load_noise(in_file(data, "noise.npy")), "noise", (2, 4, 1, 1))
    except SonicError:
        return
