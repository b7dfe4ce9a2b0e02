"""Trains the face detector: a small YOLO-style network with YOLOv5-face's TorchScript interface.

A convolutional stem and one prediction per cell at strides of 8, 16 and 32 pixels, decoded as in YOLOv5
(Qi et al., "YOLO5Face: Why Reinventing a Face Detector", arXiv 2105.12931), but with one anchor per cell
instead of three.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from sonic_convert.drawing.face import Pose
from sonic_convert.synth.face import copy_archive
from sonic_training.actors import draw_poses, head_motion, random_framing, random_look
from sonic_training.trainer import TrainingOptions, train

STRIDES_PIXELS = (8, 16, 32)
ANCHOR_PIXELS = (48.0, 110.0, 240.0)  # size of the anchor, sqrt(width * height), at each stride
_LEVEL_LIMITS_PIXELS = (80.0, 170.0)  # faces above each limit belong to the next stride
_VALUES = 16  # per prediction: cx, cy, w, h, confidence, five landmarks (x, y), class
# Eyes, nose and corners of the mouth of a drawn face, as fractions of its box.
_LANDMARKS = ((0.3, 0.37), (0.7, 0.37), (0.5, 0.56), (0.35, 0.73), (0.65, 0.73))
_SCENE_PIXELS = 416
_SCENES_PER_STEP = 4


class FaceNetwork(nn.Module):
    """Picture (n, 3, height, width), 0..1, and the three grids of `grids` -> (n, cells, 16), in pixels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def down(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
            )

        self.stem = nn.Sequential(down(3, width), down(width, width), down(width, 2 * width))
        self.deeper = nn.ModuleList(
            [
                down(2 * width, 2 * width, 1),
                nn.Sequential(down(2 * width, 3 * width), down(3 * width, 3 * width, 1)),
                nn.Sequential(down(3 * width, 4 * width), down(4 * width, 4 * width, 1)),
            ]
        )
        self.heads = nn.ModuleList(
            [
                nn.Sequential(down(k * width, 2 * width, 1), nn.Conv2d(2 * width, _VALUES, 1))
                for k in (2, 3, 4)
            ]
        )
        for head in self.heads:
            nn.init.constant_(head[-1].bias[4], -4.0)  # type: ignore[index]  # faces are rare

    def forward(self, image: Tensor, grids: list[Tensor]) -> Tensor:
        decoded = []
        for raw, grid, stride, anchor in zip(
            self.raw(image), grids, STRIDES_PIXELS, ANCHOR_PIXELS, strict=True
        ):
            values = raw.permute(0, 2, 3, 1)
            cell = grid[0]
            centre = (values[..., 0:2].sigmoid() * 2 - 0.5 + cell) * stride
            size = (values[..., 2:4].sigmoid() * 2) ** 2 * anchor
            points = values[..., 5:15] * (anchor / 4) + (cell * stride).repeat(1, 1, 1, 5)
            parts = [centre, size, values[..., 4:5].sigmoid(), points, values[..., 15:16].sigmoid()]
            joined = torch.cat(parts, dim=-1)
            decoded.append(joined.reshape(joined.shape[0], -1, _VALUES))
        return torch.cat(decoded, dim=1)

    def raw(self, image: Tensor) -> list[Tensor]:
        """Output of the heads before decoding: (n, 16, height / stride, width / stride) for each stride."""
        features, outputs = self.stem(image), []
        for block, head in zip(self.deeper, self.heads, strict=True):
            features = block(features)
            outputs.append(head(features))
        return outputs


def grids(height: int, width: int) -> list[Tensor]:
    """Indices (x, y) of each cell, float32 (1, 1, rows, columns, 2) for each stride."""
    made = []
    for stride in STRIDES_PIXELS:
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        made.append(torch.stack([x, y], dim=-1).float()[None, None])
    return made


def train_face_detector(folder: Path, options: TrainingOptions, seed: int) -> FaceNetwork:
    """Train on scenes with zero or more drawn faces among other shapes.

    Args:
        folder: for the training state.
        options: the schedule.
        seed: of weights and scenes.
    """
    torch.manual_seed(seed)
    network = FaceNetwork()
    cells = grids(_SCENE_PIXELS, _SCENE_PIXELS)

    def loss(step: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, step])
        scenes = [draw_scene(generator, _SCENE_PIXELS) for _ in range(_SCENES_PER_STEP)]
        images = torch.from_numpy(np.stack([scene for scene, _ in scenes])).permute(0, 3, 1, 2)
        predicted = network(images.float() / 255, cells).float()
        targets = torch.stack([_targets(boxes, cells) for _, boxes in scenes])
        face = targets[..., 4] > 0.5
        confidence = predicted[..., 4].clamp(1e-5, 1 - 1e-5)
        ignored = (targets[..., 4] > 0) & ~face  # for cells beside a face's own, either answer is right
        entropy = functional.binary_cross_entropy(confidence, targets[..., 4].round(), reduction="none")
        focal = entropy * (confidence - targets[..., 4].round()).abs() ** 1.5
        face_predicted, face_targets = predicted[face], targets[face]
        scale = face_targets[:, 2:4].prod(dim=-1).sqrt()[:, None].clamp(min=1)
        predicted_points = torch.cat([face_predicted[:, :4], face_predicted[:, 5:15]], dim=1)
        target_points = torch.cat([face_targets[:, :4], face_targets[:, 5:15]], dim=1)
        place = functional.smooth_l1_loss(predicted_points / scale, target_points / scale, beta=0.05)
        seen = focal[~ignored].sum() / max(int(face.sum()), 1)
        kind = -face_predicted[:, 15].clamp(min=1e-5).log().mean() if face.any() else 0.0 * seen
        place = place if face.any() else 0.0 * seen
        return {"loss": seen + 5 * place + 0.1 * kind, "seen": seen, "place": place}

    train("face-detector", network, loss, folder, options)
    return network


def draw_scene(
    generator: np.random.Generator, size_pixels: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw a random scene.

    Returns:
        The picture, uint8 (size, size, 3), and the boxes of its faces, float32 (n, 4), x1, y1, x2, y2 in
        pixels.
    """
    kind = generator.random()
    if kind < 0.6:  # a portrait that fills the picture, possibly enlarged from a smaller one
        side = int(generator.choice([128, 208, size_pixels]))
        framing = random_framing(generator, side)
        pose = _pose(generator)
        drawn = Image.fromarray(draw_poses(random_look(generator), [pose], framing)[0])
        scale = size_pixels / side
        picture = drawn.resize((size_pixels, size_pixels), Image.Resampling.BILINEAR)
        boxes = np.array([framing.face_box], np.float32) * np.float32(scale)
    else:  # a background with zero to two smaller portraits on it
        picture = _background(generator, size_pixels)
        boxes = np.zeros((0, 4), np.float32)
        if kind < 0.85:
            for column in range(int(generator.integers(1, 3))):
                side = int(generator.integers(110, 200))
                framing = random_framing(generator, side)
                drawn = Image.fromarray(draw_poses(random_look(generator), [_pose(generator)], framing)[0])
                left = int(generator.integers(0, 208 - side + 1) if side < 208 else 0) + 208 * column
                top = int(generator.integers(0, size_pixels - side + 1))
                picture.paste(drawn, (left, top))
                box = np.array([framing.face_box], np.float32) + np.array([left, top] * 2, np.float32)
                boxes = np.concatenate([boxes, box])
    pixels = np.asarray(picture) * generator.uniform(0.7, 1.2) + generator.normal(0, 6)
    noisy = pixels + generator.normal(0, 2, pixels.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), boxes


def _pose(generator: np.random.Generator) -> Pose:
    pose = head_motion(generator, 1, 12.5, 1.5)[0]
    return replace(pose, mouth_opening=float(max(generator.uniform(-0.6, 1.2), 0.0)))


def _background(generator: np.random.Generator, size: int) -> Image.Image:
    """Soft blobs of random colours, including skin colours, so that colour alone does not mark a face."""
    coarse = generator.integers(0, 256, (int(generator.integers(2, 14)),) * 2 + (3,), np.uint8)
    picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    look = random_look(generator)
    for _ in range(int(generator.integers(0, 4))):
        side = int(generator.integers(20, 160))
        color = (look.skin, look.hair, look.clothes)[int(generator.integers(3))]
        blob = Image.new("L", (side, int(side * generator.uniform(0.7, 1.6))), 0)
        ImageDraw.Draw(blob).ellipse([0, 0, *blob.size], fill=255)
        left, top = (int(v) for v in generator.integers(-20, size - 20, 2))
        picture.paste(Image.new("RGB", blob.size, color), (left, top), blob)
    return picture


def _targets(boxes: NDArray[np.float32], cells: list[Tensor]) -> Tensor:
    """Targets of all cells of one picture, (cells, 16).

    The cell at a face's centre has the face's values and confidence 1, its neighbours have confidence 0.4,
    and all other values are 0.
    """
    levels = []
    for level, (cell, stride) in enumerate(zip(cells, STRIDES_PIXELS, strict=True)):
        rows, columns = cell.shape[2:4]
        targets = torch.zeros(rows, columns, _VALUES)
        for x1, y1, x2, y2 in boxes.tolist():
            size = math.sqrt(max((x2 - x1) * (y2 - y1), 1))
            if level != sum(size > limit for limit in _LEVEL_LIMITS_PIXELS):
                continue
            x, y = 0.5 * (x1 + x2) / stride - 0.5, 0.5 * (y1 + y2) / stride - 0.5
            for row in range(max(int(y) - 1, 0), min(int(y) + 3, rows)):
                for column in range(max(int(x) - 1, 0), min(int(x) + 3, columns)):
                    targets[row, column, 4] = max(float(targets[row, column, 4]), 0.4)
            row, column = (min(max(round(v), 0), n - 1) for v, n in ((y, rows), (x, columns)))
            landmarks = [value for a, b in _LANDMARKS for value in (x1 + a * (x2 - x1), y1 + b * (y2 - y1))]
            centre = [0.5 * (x1 + x2), 0.5 * (y1 + y2), x2 - x1, y2 - y1]
            targets[row, column] = torch.tensor([*centre, 1.0, *landmarks, 1.0])
        levels.append(targets.reshape(-1, _VALUES))
    return torch.cat(levels)


def write_archive(network: FaceNetwork, path: Path) -> None:
    """Trace the detector into a TorchScript archive that accepts pictures of any size.

    Args:
        network: the trained network.
        path: the archive's file; its folder is created if it does not exist.
    """
    network = network.float().eval()
    example = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        traced = torch.jit.trace(network, (example, grids(96, 128)), check_trace=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / path.name  # the file's name becomes the name of the folder in the archive
        torch.jit.save(traced, str(saved))
        copy_archive(saved, path)
