"""The face detector: its wrapper, its export, and the hand-made one of synthesized checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from yolov5_face import (
    as_saved_by_1_8,
    cell_grids,
    random_yolo_face,
    save_scripted,
    save_traced,
)

from sonic.errors import InputError
from sonic_convert.drawing.demo_portrait import draw_portrait, face_box
from sonic_convert.modules.face import load_face_detector
from sonic_convert.modules.tensor_program import TensorProgram
from sonic_convert.synth.face import write_face_detector

ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's own

Box = tuple[float, float, float, float]
INPUTS = ["image", "grid_8", "grid_16", "grid_32"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("face") / "yoloface_v5m.pt"
    write_face_detector(path)
    return path


@pytest.fixture(scope="module")
def detector(archive: Path) -> TensorProgram:
    return load_face_detector(archive)


def overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)


def find_faces(detector: TensorProgram, image: Image.Image) -> list[Box]:
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
def test_one_face_in_a_drawn_portrait_of_every_skin_tone(detector: TensorProgram, seed: int) -> None:
    size = (288, 352)
    found = find_faces(detector, draw_portrait(seed, size))
    assert len(found) == 1
    assert overlap(found[0], face_box(size)) > 0.6


def test_a_close_up_whose_face_fills_the_picture(detector: TensorProgram) -> None:
    size = (288, 352)
    x1, y1, x2, y2 = (round(side) for side in face_box(size))
    found = find_faces(detector, draw_portrait(2, size).crop((x1 - 8, y1 - 8, x2 + 8, y2 + 8)))
    assert len(found) == 1
    assert overlap(found[0], (8, 8, x2 - x1 + 8, y2 - y1 + 8)) > 0.6


def test_two_separate_faces(detector: TensorProgram) -> None:
    size = (288, 352)
    both = Image.new("RGB", (576, 352))
    both.paste(draw_portrait(0, size), (0, 0))
    both.paste(draw_portrait(4, size), (288, 0))
    found = sorted(find_faces(detector, both))
    x1, y1, x2, y2 = face_box(size)
    assert len(found) == 2
    assert overlap(found[0], (x1, y1, x2, y2)) > 0.6
    assert overlap(found[1], (x1 + 288, y1, x2 + 288, y2)) > 0.6


def test_the_face_of_a_photograph(detector: TensorProgram) -> None:
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
def test_no_face_where_there_is_none(detector: TensorProgram, name: str) -> None:
    assert find_faces(detector, negatives()[name]) == []


def test_the_decoding_uses_the_grids(detector: TensorProgram) -> None:
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


def test_landmarks_lie_inside_their_box(detector: TensorProgram) -> None:
    with torch.no_grad():
        found = detector(torch.rand(1, 3, 416, 416), *cell_grids(416, 416))[0]
    reachable = found[8112:]  # the first stride's boxes may be cut to what its anchors reach
    centre, size = reachable[:, None, 0:2], reachable[:, None, 2:4]
    points = reachable[:, 5:15].reshape(-1, 5, 2)
    assert ((points - centre).abs() < 0.5 * size + 1).all()


ARCHIVES = {
    "scripted": lambda path: save_scripted(random_yolo_face(0.33, 0.25), path),
    "traced": lambda path: save_traced(random_yolo_face(0.33, 0.25), path),
    "traced, PyTorch 1.8": lambda path: as_saved_by_1_8(save_traced(random_yolo_face(0.33, 0.25), path)),
    "scripted, PyTorch 1.8": lambda path: as_saved_by_1_8(save_scripted(random_yolo_face(0.33, 0.25), path)),
    "the published size, scripted": lambda path: save_scripted(random_yolo_face(), path),
    "our own": write_face_detector,
}


@pytest.mark.parametrize("which", ARCHIVES)
def test_archives_become_graphs_with_free_height_and_width(which: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    ARCHIVES[which](path)
    module = load_face_detector(path)
    archive = torch.jit.load(str(path))

    def example(height: int, width: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return torch.rand(1, 3, height, width), cell_grids(height, width)

    image, grids = example(96, 128)
    with torch.no_grad():
        torch.onnx.export(
            module,
            (image, *grids),
            tmp_path / "face.onnx",
            input_names=INPUTS,
            output_names=["predictions"],
            dynamic_axes={name: {2: f"rows_{name}", 3: f"columns_{name}"} for name in INPUTS}
            | {"predictions": {1: "anchors"}},
            opset_version=18,
            dynamo=False,
        )
    session = ort.InferenceSession(tmp_path / "face.onnx", providers=["CPUExecutionProvider"])
    for height, width in ((96, 128), (224, 160), (416, 448)):
        image, grids = example(height, width)
        with torch.no_grad(), torch.jit.optimized_execution(False):
            expected = archive(image, grids)
            assert torch.allclose(module(image, *grids), expected, rtol=1e-5, atol=1e-3)
        arrays = [values.numpy() for values in (image, *grids)]
        found = session.run(None, dict(zip(INPUTS, arrays, strict=True)))[0]
        assert found.shape == expected.shape
        assert np.abs(found - expected.numpy()).max() < 5e-3  # pixels
        assert expected.std() > 10


def test_an_archive_that_was_traced_for_one_size_is_refused(tmp_path: Path) -> None:
    network = random_yolo_face(0.33, 0.25)
    network.heads.by_list = True
    with pytest.raises(InputError, match=r"net\.pt.*(fails|decides)"):
        load_face_detector(save_traced(network, tmp_path / "net.pt"))


def test_corrupt_archive_is_named(archive: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.pt"
    half.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(InputError, match="half.pt"):
        load_face_detector(half)


def test_the_archive_names_no_path_of_this_machine(archive: Path) -> None:
    assert str(Path(__file__).parents[3]).encode() not in archive.read_bytes()
