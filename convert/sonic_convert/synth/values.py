"""Random weights that keep a network's activations finite and of order one.

Linear and convolution weights preserve variance (uniform, standard deviation `gain / sqrt(fan
in)`), normalisations stay near one, biases near zero, and the outputs of residual branches are
damped so that deep stacks do not grow. Every tensor has its own generator, seeded by its name: the
values depend neither on the order nor on the number of tensors. Uniform numbers, unlike normal ones,
have the same bits on every machine.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator

import torch
from torch import nn

_NORMS = (nn.GroupNorm, nn.LayerNorm)

# (pattern of the end of a weight's path, gain); the first match counts, and the gain is 1.0 without one.
_GAINS: dict[str, tuple[tuple[str, float], ...]] = {
    "unet": (
        (r"attn2\.to_out\.0", 0.9),  # both conditions enter here: their effect has to show
        (r"attn1\.to_out\.0|ff\.net\.2|ff_in\.net\.2", 0.4),
        (r"proj_out", 0.7),
        (r"res_block\.conv2", 0.5),
        (r"attn2\.to_q", 1.5),
        (r"conv_out", 0.6),
    ),
    "vae": (
        (r"to_out\.0|conv2", 0.6),
        (r"encoder\.conv_out", 6.0),  # latents of a few units, as the published ones are
        (r"decoder\.conv_in", 0.3),
        (r"decoder\.conv_out", 0.9),
    ),
    "image_encoder": ((r"out_proj|fc2", 0.9), (r"patch_embedding", 2.0), (r"[vq]_proj|fc1", 1.4)),
    "audio_encoder": ((r"conv1|conv2", 2.0), (r"out_proj|fc2", 0.6)),
    "audio2token": ((r"proj[12]", 1.4),),
    "audio2bucket": ((r"proj[12]", 1.4), (r"proj3", 0.5)),
    "frame_interpolator": (
        (r"conv1\.2", 0.5),  # flows of a pixel or so
        (r"conv2\.2", 0.5),
        (r"convblock\d\.1\.0", 0.4),
    ),
}


def uniform(
    shape: tuple[int, ...], standard_deviation: float, seed: int, component: str, name: str
) -> torch.Tensor:
    """Zero-mean float32 values that depend on `seed`, `component` and `name` alone."""
    digest = hashlib.blake2b(f"{seed}/{component}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    values = torch.rand(shape, generator=generator)
    return values.sub_(0.5).mul_(standard_deviation * math.sqrt(12.0))


def random_state(module: nn.Module, seed: int, component: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and float32 values of every tensor of `module`, which may be on the meta device."""
    for path, child in module.named_modules():
        for parameter, tensor in child.named_parameters(recurse=False):
            name = f"{path}.{parameter}" if path else parameter
            yield name, _values(child, path, parameter, tuple(tensor.shape), seed, component, name)


def _values(
    module: nn.Module,
    path: str,
    parameter: str,
    shape: tuple[int, ...],
    seed: int,
    component: str,
    name: str,
) -> torch.Tensor:
    def noise(standard_deviation: float) -> torch.Tensor:
        return uniform(shape, standard_deviation, seed, component, name)

    if isinstance(module, _NORMS):
        return noise(0.1) + (1.0 if parameter == "weight" else 0.0)
    if isinstance(module, nn.PReLU):
        return noise(0.05) + 0.25
    if parameter == "bias":
        return noise(0.05)
    if path.endswith(("time_conv_out", "quant_conv")):
        return _near_identity(shape) + noise(0.05)
    if path.endswith("embed_positions") and "encoder" in path:
        return sinusoids(*shape)
    if isinstance(module, nn.ConvTranspose2d):  # each output sees a stride-th of the kernel
        fan_in = shape[0] * math.prod(shape[2:]) / math.prod(module.stride)
        return noise(_gain(component, path) / math.sqrt(fan_in))
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return noise(_gain(component, path) / math.sqrt(math.prod(shape[1:])))
    return noise(1.0 if parameter == "mix_factor" else 0.5)


def _gain(component: str, path: str) -> float:
    for ending, gain in _GAINS.get(component, ()):
        if re.search(rf"(?:{ending})$", path):
            return gain
    return 1.0


def _near_identity(shape: tuple[int, ...]) -> torch.Tensor:
    """A convolution kernel that passes its input through."""
    kernel = torch.zeros(shape)
    centre = tuple(size // 2 for size in shape[2:])
    for channel in range(min(shape[:2])):
        kernel[(channel, channel, *centre)] = 1.0
    return kernel


def sinusoids(positions: int, channels: int) -> torch.Tensor:
    """Whisper's fixed position embedding (Radford et al. 2022): sines, then cosines."""
    rates = torch.exp(-math.log(10_000) / (channels // 2 - 1) * torch.arange(channels // 2))
    angles = torch.arange(positions)[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
