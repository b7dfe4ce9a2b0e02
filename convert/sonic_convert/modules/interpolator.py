"""The frame interpolator: RIFE HDv3's flow network (Huang et al., ECCV 2022, arXiv 2011.06294).

Only the network is here, with the official tensor names; it is written so that height and width
stay dynamic when it is exported.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from sonic.errors import InputError
from sonic_convert.checkpoint.tensor_files import load_strict

SCALES = (4, 2, 1)  # coarse to fine
FRAME_MULTIPLE_PIXELS = 16  # the coarsest scale halves a quarter of the frame twice


class FrameInterpolator(nn.Module):
    """The frame halfway between two frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inputs = 2 * 3 + 1 + 4  # two frames, the blending mask, two flows
        self.block0 = FlowBlock(inputs, channels)
        self.block1 = FlowBlock(inputs, channels)
        self.block2 = FlowBlock(inputs, channels)
        # The teacher during training: its weights are in the file, but it takes no part in the prediction.
        self.block_tea = FlowBlock(inputs + 3, channels)

    @classmethod
    def from_state_dict(cls, state: dict[str, torch.Tensor], source: str) -> FrameInterpolator:
        """Build the network whose width fits `state` and load it.

        Raises:
            InputError: a tensor is missing, unexpected or mis-shaped; `source` is named.
        """
        name = "block0.conv0.1.0.weight"
        if name not in state:
            raise InputError(f"{source}: the tensor '{name}' should be there, but is missing")
        with torch.device("meta"):
            module = cls(int(state[name].shape[0]))
        load_strict(module, state, source)
        return module.eval()

    def forward(self, frame_0: torch.Tensor, frame_1: torch.Tensor) -> torch.Tensor:
        """The middle frame.

        Args:
            frame_0: (n, 3, height, width) float32 in 0..1, sides multiples of 16 pixels.
            frame_1: the next frame, the same shape.

        Returns:
            (n, 3, height, width) float32 in 0..1.
        """
        mask = torch.zeros_like(frame_0[:, :1])
        flow = torch.cat([mask, mask, mask, mask], dim=1)
        warped_0, warped_1 = frame_0, frame_1
        for block, scale in zip((self.block0, self.block1, self.block2), SCALES, strict=True):
            # Both directions, so that swapping the frames swaps the flows and negates the mask.
            flow_ahead, mask_ahead = block(torch.cat([warped_0, warped_1, mask], 1), flow, scale)
            flow_back, mask_back = block(torch.cat([warped_1, warped_0, -mask], 1), _swap(flow), scale)
            flow = flow + (flow_ahead + _swap(flow_back)) / 2
            mask = mask + (mask_ahead - mask_back) / 2
            warped_0 = _warp(frame_0, flow[:, :2])
            warped_1 = _warp(frame_1, flow[:, 2:])
        share = torch.sigmoid(mask)
        return (warped_0 * share + warped_1 * (1 - share)).clamp(0, 1)


class FlowBlock(nn.Module):
    """Refines both flows and the blending mask at one scale."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(
            _convolution(inputs, channels // 2, stride=2),
            _convolution(channels // 2, channels, stride=2),
        )
        self.convblock0 = _convolution_pair(channels)
        self.convblock1 = _convolution_pair(channels)
        self.convblock2 = _convolution_pair(channels)
        self.convblock3 = _convolution_pair(channels)
        self.conv1 = _upsampling_head(channels, 4)
        self.conv2 = _upsampling_head(channels, 1)

    def forward(
        self, images: torch.Tensor, flow: torch.Tensor, scale: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 7, H, W), (n, 4, H, W) -> changes of the flows (pixels) and of the mask."""
        images = _resize(images, 1 / scale)
        flow = _resize(flow, 1 / scale) * (1 / scale)
        features = self.conv0(torch.cat([images, flow], dim=1))
        for block in (self.convblock0, self.convblock1, self.convblock2, self.convblock3):
            features = block(features) + features
        flow_change = _resize(self.conv1(features), scale) * scale
        return flow_change, _resize(self.conv2(features), scale)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.PReLU(outputs))


def _convolution_pair(channels: int) -> nn.Sequential:
    return nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))


def _upsampling_head(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1),
        nn.PReLU(channels // 2),
        nn.ConvTranspose2d(channels // 2, outputs, 4, 2, 1),
    )


def _resize(values: torch.Tensor, factor: float) -> torch.Tensor:
    if factor == 1:  # bilinear resampling to the same size changes nothing
        return values
    return functional.interpolate(values, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _swap(flow: torch.Tensor) -> torch.Tensor:
    return torch.cat([flow[:, 2:], flow[:, :2]], dim=1)


def _warp(frame: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Sample `frame` at every pixel displaced by `flow` (pixels; x, then y)."""
    height, width = frame.shape[2], frame.shape[3]
    # From the input's own size, never a cached grid: a constant would bake the size into the graph.
    across = torch.arange(width, dtype=frame.dtype, device=frame.device)
    down = torch.arange(height, dtype=frame.dtype, device=frame.device)
    x = (flow[:, 0] + across[None, None, :]) * (2.0 / (width - 1)) - 1.0
    y = (flow[:, 1] + down[None, :, None]) * (2.0 / (height - 1)) - 1.0
    return functional.grid_sample(
        frame,
        torch.stack([x, y], dim=-1),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
