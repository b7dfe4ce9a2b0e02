"""The face detector: a small YOLO-style network with YOLOv5-face's TorchScript interface.

One convolutional stem, a prediction for each cell at strides of 8, 16 and 32 pixels, decoded as
YOLOv5 does it (Qi et al., "YOLO5Face: Why Reinventing a Face Detector", arXiv 2105.12931), with one
anchor a cell instead of three.
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
ANCHOR_PIXELS = (48.0, 110.0, 240.0)  # a face's size, sqrt(width * height), at each stride
_LEVEL_LIMITS_PIXELS = (80.0, 170.0)
_ASPECT = 1.14  # height over width
_VALUES = 16  # cx cy w h, confidence, five landmarks, class
# Eyes, nose and corners of the mouth of a drawn face, as fractions of its box.
_LANDMARKS = ((0.3, 0.37), (0.7, 0.37), (0.5, 0.56), (0.35, 0.73), (0.65, 0.73))
_SCENE_PIXELS = 416
_SCENES_A_STEP = 4


class FaceNetwork(nn.Module):
    """(n, 3, H, W) in 0..1 and the list of the three grids -> (n, cells, 16), in pixels."""

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
        """What the heads say before decoding: (n, 16, H / stride, W / stride) for each stride."""
        features, outputs = self.stem(image), []
        for block, head in zip(self.deeper, self.heads, strict=True):
            features = block(features)
            outputs.append(head(features))
        return outputs


def grids(height: int, width: int) -> list[Tensor]:
    """x and y of each cell at each stride, (1, 1, rows, columns, 2)."""
    made = []
    for stride in STRIDES_PIXELS:
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        made.append(torch.stack([x, y], dim=-1).float()[None, None])
    return made


def train_face_detector(folder: Path, options: TrainingOptions, seed: int) -> FaceNetwork:
    """Train on scenes of no, one or several drawn faces among shapes that are none."""
    torch.manual_seed(seed)
    network = FaceNetwork()
    cells = grids(_SCENE_PIXELS, _SCENE_PIXELS)

    def loss(step: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, step])
        scenes = [draw_scene(generator, _SCENE_PIXELS) for _ in range(_SCENES_A_STEP)]
        images = torch.from_numpy(np.stack([scene for scene, _ in scenes])).permute(0, 3, 1, 2)
        predicted = network(images.float() / 255, cells).float()
        wanted = torch.stack([_targets(boxes, cells) for _, boxes in scenes])
        face = wanted[..., 4] > 0.5
        confidence = predicted[..., 4].clamp(1e-5, 1 - 1e-5)
        ignored = (wanted[..., 4] > 0) & ~face  # cells beside a face's own may say either
        entropy = functional.binary_cross_entropy(confidence, wanted[..., 4].round(), reduction="none")
        modulated = entropy * (confidence - wanted[..., 4].round()).abs() ** 1.5
        of_faces = predicted[face], wanted[face]
        scale = of_faces[1][:, 2:4].prod(dim=-1).sqrt()[:, None].clamp(min=1)
        offsets = torch.cat([of_faces[0][:, :4], of_faces[0][:, 5:15]], dim=1)
        truths = torch.cat([of_faces[1][:, :4], of_faces[1][:, 5:15]], dim=1)
        place = functional.smooth_l1_loss(offsets / scale, truths / scale, beta=0.05)
        seen = modulated[~ignored].sum() / max(int(face.sum()), 1)
        kind = -predicted[face][:, 15].clamp(min=1e-5).log().mean() if face.any() else 0.0 * seen
        place = place if face.any() else 0.0 * seen
        return {"loss": seen + 5 * place + 0.1 * kind, "seen": seen, "place": place}

    train("face-detector", network, loss, folder, options)
    return network


def draw_scene(
    generator: np.random.Generator, size_pixels: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A picture, uint8 (size, size, 3), and its faces' boxes, float32 (n, 4), x1 y1 x2 y2 in pixels."""
    kind = generator.random()
    if kind < 0.6:  # a portrait that fills the picture, drawn or enlarged from small
        side = int(generator.choice([128, 208, size_pixels]))
        framing = random_framing(generator, side)
        pose = _pose(generator)
        drawn = Image.fromarray(draw_poses(random_look(generator), [pose], framing)[0])
        scale = size_pixels / side
        picture = drawn.resize((size_pixels, size_pixels), Image.Resampling.BILINEAR)
        boxes = np.array([framing.face_box], np.float32) * np.float32(scale)
    else:  # a plain or patterned background, with up to two smaller people on it
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
    """Soft blobs of any colour, skin colours among them, so that colour alone is no face."""
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
    """(cells, 16): at the cells about a face's centre its values; confidence 0.4 at their neighbours."""
    levels = []
    for level, (cell, stride) in enumerate(zip(cells, STRIDES_PIXELS, strict=True)):
        rows, columns = cell.shape[2:4]
        wanted = torch.zeros(rows, columns, _VALUES)
        for x1, y1, x2, y2 in boxes.tolist():
            size = math.sqrt(max((x2 - x1) * (y2 - y1), 1))
            own = sum(size > limit for limit in _LEVEL_LIMITS_PIXELS)
            if own != level:
                continue
            x, y = 0.5 * (x1 + x2) / stride - 0.5, 0.5 * (y1 + y2) / stride - 0.5
            for row in range(max(int(y) - 1, 0), min(int(y) + 3, rows)):
                for column in range(max(int(x) - 1, 0), min(int(x) + 3, columns)):
                    wanted[row, column, 4] = max(float(wanted[row, column, 4]), 0.4)
            row, column = (min(max(round(v), 0), n - 1) for v, n in ((y, rows), (x, columns)))
            landmarks = [value for a, b in _LANDMARKS for value in (x1 + a * (x2 - x1), y1 + b * (y2 - y1))]
            centre = [0.5 * (x1 + x2), 0.5 * (y1 + y2), x2 - x1, y2 - y1]
            wanted[row, column] = torch.tensor([*centre, 1.0, *landmarks, 1.0])
        levels.append(wanted.reshape(-1, _VALUES))
    return torch.cat(levels)


def write_archive(network: FaceNetwork, path: Path) -> None:
    """Trace the detector into a TorchScript archive that takes any size."""
    network = network.float().eval()
    example = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        traced = torch.jit.trace(network, (example, grids(96, 128)), check_trace=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / path.name  # the name becomes the folder inside the archive
        torch.jit.save(traced, str(saved))
        copy_archive(saved, path)
