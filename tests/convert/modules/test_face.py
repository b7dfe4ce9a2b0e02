"""The face detector: its wrapper, its export, and the hand-made one of synthesized checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sonic.errors import InputError
from sonic_convert.drawing.demo_portrait import draw_portrait, face_box
from sonic_convert.modules.face import FaceDetector
from sonic_convert.synth.face import write_face_detector

ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's own

Box = tuple[float, float, float, float]
INPUTS = ["image", "grid_8", "grid_16", "grid_32"]


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class Stem(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first = convolution(3, outputs, stride=2)
        self.narrow = convolution(outputs, outputs // 2, 1)
        self.down = convolution(outputs // 2, outputs, stride=2)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.last = convolution(2 * outputs, outputs, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.first(image)
        return self.last(torch.cat([self.down(self.narrow(first)), self.pool(first)], 1))


class CrossStage(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one = convolution(inputs, outputs // 2, 1)
        self.two = convolution(inputs, outputs // 2, 1)
        self.block = convolution(outputs // 2, outputs // 2)
        self.join = convolution(outputs, outputs, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        one = self.one(values)
        return self.join(torch.cat([one + self.block(one), self.two(values)], 1))


class PyramidPool(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList([nn.MaxPool2d(size, 1, size // 2) for size in (3, 5, 7)])
        self.join = convolution(4 * channels, channels, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        pooled = [values]
        for pool in self.pools:
            pooled.append(pool(values))
        return self.join(torch.cat(pooled, 1))


class YoloFaceLike(nn.Module):
    """A random network with the parts of YOLOv5-face: what a real archive is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem(8)
        self.down = nn.ModuleList([convolution(c, 16, stride=2) for c in (8, 16, 16)])
        self.stages = nn.ModuleList([CrossStage(16, 16) for _ in range(3)])
        self.pool = PyramidPool(16)
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.merge = nn.ModuleList([CrossStage(32, 16) for _ in range(2)])
        self.heads = nn.ModuleList([nn.Conv2d(16, 48, 1) for _ in range(3)])
        self.strides = (8.0, 16.0, 32.0)
        self.register_buffer("anchors", torch.rand(3, 1, 3, 1, 1, 2) * 100)

    def forward(self, image: torch.Tensor, grids: list[torch.Tensor]) -> torch.Tensor:
        values = self.stem(image)
        levels = []
        for down, stage in zip(self.down, self.stages, strict=True):
            values = stage(down(values))
            levels.append(values)
        levels[2] = self.pool(levels[2])
        for index, merge in enumerate(self.merge):
            coarse = self.up(levels[2 - index])
            levels[1 - index] = merge(torch.cat([coarse, levels[1 - index]], 1))
        found = []
        for index, head in enumerate(self.heads):
            raw = head(levels[index])
            batch, _, rows, columns = raw.shape
            raw = raw.view(batch, 3, 16, rows, columns).permute(0, 1, 3, 4, 2).contiguous()
            grid, stride, anchors = grids[index], self.strides[index], self.anchors[index]
            boxes = torch.full_like(raw, 0)
            boxes[..., 0:5] = raw[..., 0:5].sigmoid()
            boxes[..., 15:16] = raw[..., 15:16].sigmoid()
            boxes[..., 5:15] = raw[..., 5:15]
            boxes[..., 0:2] = (boxes[..., 0:2] * 2.0 - 0.5 + grid) * stride
            boxes[..., 2:4] = (boxes[..., 2:4] * 2) ** 2 * anchors
            for point in range(5):
                start = 5 + 2 * point
                boxes[..., start : start + 2] = boxes[..., start : start + 2] * anchors + grid * stride
            found.append(boxes.view(batch, -1, 16))
        return torch.cat(found, 1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("face") / "yoloface_v5m.pt"
    write_face_detector(path)
    return path


@pytest.fixture(scope="module")
def detector(archive: Path) -> torch.jit.ScriptModule:
    return FaceDetector.load(archive)


@pytest.fixture(scope="module")
def yolo_like(tmp_path_factory: pytest.TempPathFactory) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("face") / "net.pt"
    example = (torch.rand(1, 3, 416, 448), cell_grids(416, 448))
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(YoloFaceLike().eval(), example, strict=False), str(path))
    return FaceDetector.load(path)


def cell_grids(height: int, width: int) -> list[torch.Tensor]:
    grids = []
    for stride in (8, 16, 32):
        rows, columns = torch.arange(height // stride), torch.arange(width // stride)
        y, x = torch.meshgrid(rows.float(), columns.float(), indexing="ij")
        grids.append(torch.stack([x, y], dim=-1)[None, None])
    return grids


def overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)


def find_faces(detector: torch.jit.ScriptModule, image: Image.Image) -> list[Box]:
    """Boxes in the picture's pixels, best first, after suppressing overlaps above 0.45."""
    scale = 416 / min(image.size)
    width, height = (int(side * scale + 31) // 32 * 32 for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.no_grad():
        found = detector(tensor, *cell_grids(height, width))[0].numpy()
    found = found[found[:, 4] * found[:, 15] > 0.5]
    kept: list[Box] = []
    for x, y, w, h in found[np.argsort(-found[:, 4]), :4]:
        box = (float(x - w / 2), float(y - h / 2), float(x + w / 2), float(y + h / 2))
        if all(overlap(box, other) <= 0.45 for other in kept):
            kept.append(box)
    across, down = image.size[0] / width, image.size[1] / height
    return [(a * across, b * down, c * across, d * down) for a, b, c, d in kept]


@pytest.mark.parametrize("seed", range(6))
def test_one_face_in_a_drawn_portrait_of_every_skin_tone(detector: torch.jit.ScriptModule, seed: int) -> None:
    size = (288, 352)
    found = find_faces(detector, draw_portrait(seed, size))
    assert len(found) == 1
    assert overlap(found[0], face_box(size)) > 0.6


def test_a_close_up_whose_face_fills_the_picture(detector: torch.jit.ScriptModule) -> None:
    size = (288, 352)
    x1, y1, x2, y2 = (round(side) for side in face_box(size))
    found = find_faces(detector, draw_portrait(2, size).crop((x1 - 8, y1 - 8, x2 + 8, y2 + 8)))
    assert len(found) == 1
    assert overlap(found[0], (8, 8, x2 - x1 + 8, y2 - y1 + 8)) > 0.6


def test_two_separate_faces(detector: torch.jit.ScriptModule) -> None:
    size = (288, 352)
    both = Image.new("RGB", (576, 352))
    both.paste(draw_portrait(0, size), (0, 0))
    both.paste(draw_portrait(4, size), (288, 0))
    found = sorted(find_faces(detector, both))
    x1, y1, x2, y2 = face_box(size)
    assert len(found) == 2
    assert overlap(found[0], (x1, y1, x2, y2)) > 0.6
    assert overlap(found[1], (x1 + 288, y1, x2 + 288, y2)) > 0.6


def test_the_face_of_a_photograph(detector: torch.jit.ScriptModule) -> None:
    data = pytest.importorskip("skimage.data")
    found = find_faces(detector, Image.fromarray(data.astronaut()))
    assert found
    assert max(overlap(box, (175, 50, 272, 190)) for box in found) > 0.4
    largest = max(found, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    assert overlap(largest, (175, 50, 272, 190)) > 0.4


def negatives() -> dict[str, Image.Image]:
    random = np.random.default_rng(0)
    blue = np.zeros((300, 400, 3), np.uint8)
    blue[..., 2] = np.linspace(0, 255, 400)[None]
    fade = np.linspace(0.4, 1, 400)[None, :, None] * np.array([236, 188, 156])
    pictures = {
        name: Image.new("RGB", (400, 300), color)
        for name, color in (
            ("black", (0, 0, 0)),
            ("grey", (128, 128, 128)),
            ("white", (255, 255, 255)),
            ("light skin", (236, 188, 156)),
            ("dark skin", (142, 92, 64)),
            ("orange", (230, 150, 90)),
        )
    }
    pictures["blue gradient"] = Image.fromarray(blue)
    pictures["skin gradient"] = Image.fromarray(np.repeat(fade, 300, axis=0).astype(np.uint8))
    pictures["noise"] = Image.fromarray(random.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    return pictures


@pytest.mark.parametrize("name", sorted(negatives()))
def test_no_face_where_there_is_none(detector: torch.jit.ScriptModule, name: str) -> None:
    assert find_faces(detector, negatives()[name]) == []


def test_the_decoding_uses_the_grids(detector: torch.jit.ScriptModule) -> None:
    image = torch.rand(1, 3, 416, 448)
    grids = cell_grids(416, 448)
    shifted = [grid + 2 for grid in grids]
    with torch.no_grad():
        moved = detector(image, *shifted) - detector(image, *grids)
    anchors = [3 * (416 // stride) * (448 // stride) for stride in (8, 16, 32)]
    steps = torch.cat([torch.full((n,), 2.0 * s) for n, s in zip(anchors, (8, 16, 32), strict=True)])
    assert moved.shape == (1, sum(anchors), 16)
    for column in (0, 1, 5, 14):
        assert torch.allclose(moved[0, :, column], steps, atol=1e-2)
    assert torch.count_nonzero(moved[0, :, [2, 3, 4, 15]]) == 0


def test_landmarks_lie_inside_their_box(detector: torch.jit.ScriptModule) -> None:
    with torch.no_grad():
        found = detector(torch.rand(1, 3, 416, 416), *cell_grids(416, 416))[0]
    reachable = found[8112:]  # the first stride's boxes may be cut to what its anchors reach
    centre, size = reachable[:, None, 0:2], reachable[:, None, 2:4]
    points = reachable[:, 5:15].reshape(-1, 5, 2)
    assert ((points - centre).abs() < 0.5 * size + 1).all()


def test_wrapper_equals_the_archive(yolo_like: torch.jit.ScriptModule) -> None:
    image, grids = torch.rand(1, 3, 64, 96), cell_grids(64, 96)
    with torch.no_grad():
        assert torch.equal(yolo_like(image, *grids), yolo_like.archive(image, grids))


@pytest.mark.parametrize("which", ["detector", "yolo_like"])
def test_export_keeps_height_and_width_free(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    module: torch.jit.ScriptModule = request.getfixturevalue(which)
    path = tmp_path / "face.onnx"

    def example(height: int, width: int) -> list[torch.Tensor]:
        return [torch.rand(1, 3, height, width), *cell_grids(height, width)]

    with torch.no_grad():
        torch.onnx.export(
            module,
            tuple(example(416, 448)),
            path,
            input_names=INPUTS,
            output_names=["predictions"],
            dynamic_axes={name: {2: f"rows_{name}", 3: f"columns_{name}"} for name in INPUTS}
            | {"predictions": {1: "anchors"}},
            opset_version=18,
            dynamo=False,
        )
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for height, width in ((416, 448), (512, 416)):
        values = example(height, width)
        feeds = {name: value.numpy() for name, value in zip(INPUTS, values, strict=True)}
        with torch.no_grad():
            expected = module(*values).numpy()
        found = session.run(None, feeds)[0]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 5e-3  # pixels


def test_corrupt_archive_is_named(archive: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.pt"
    half.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(InputError, match="half.pt"):
        FaceDetector.load(half)


def test_the_archive_names_no_path_of_this_machine(archive: Path) -> None:
    assert str(Path(__file__).parents[3]).encode() not in archive.read_bytes()
