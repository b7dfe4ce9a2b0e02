"""The face detector's input, its grids, and what is made of its predictions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.bundle.constants import FaceConstants
from sonic.errors import BundleError, InputError
from sonic.media.face import Face, detect_faces, detector_size, non_maximum_suppression, resize_bilinear

CONSTANTS = FaceConstants()
Arrays = dict[str, np.ndarray]


def prediction(
    box: tuple[float, float, float, float], confidence: float = 0.9, share: float = 1.0
) -> np.ndarray:
    """One row of the detector's output: a box as centre and size, landmarks 1..10."""
    return np.array([*box, confidence, *range(1, 11), share], np.float32)


def detector(*rows: np.ndarray, seen: Arrays | None = None) -> Callable[[Arrays], Arrays]:
    def run(inputs: Arrays) -> Arrays:
        if seen is not None:
            seen.update(inputs)
        return {"predictions": np.array(rows, np.float32).reshape(1, -1, 16)}

    return run


def find(*rows: np.ndarray, height: int = 416, width: int = 416) -> list[Face]:
    image = np.zeros((height, width, 3), np.uint8)
    return detect_faces(image, detector(*rows), CONSTANTS)


# What OpenCV 4.14 and 5.0 make of this image with INTER_LINEAR; the second channel is inverted.
SMALL = [[139, 74, 229, 241, 169], [65, 6, 160, 149, 106], [38, 175, 188, 205, 175]]
SMALL += [[229, 98, 249, 10, 148]]
LOWER_AND_WIDER = [
    [[127, 90, 107, 217, 223, 197, 158], [52, 74, 114, 174, 176, 161, 141]],
    [[128, 165, 148, 37, 32, 58, 96], [204, 181, 141, 81, 79, 93, 115]],
]
LAST_ROW = [[197, 148, 147, 239, 98, 89, 152], [58, 107, 107, 16, 156, 165, 102]]
HIGHER_AND_NARROWER = [
    [[117, 229, 193], [81, 195, 157], [52, 165, 131], [77, 183, 174], [134, 219, 143]],
    [[137, 26, 62], [174, 61, 98], [203, 90, 124], [178, 72, 81], [120, 37, 111]],
]


def test_resizing_is_opencvs() -> None:
    grey = np.array(SMALL, np.uint8)
    image = np.stack((grey, 255 - grey), axis=-1)
    wider = resize_bilinear(image, 3, 7).transpose(2, 0, 1)
    np.testing.assert_array_equal(wider[:, :2], LOWER_AND_WIDER)
    np.testing.assert_array_equal(wider[:, 2], LAST_ROW)
    higher = resize_bilinear(image, 6, 3).transpose(2, 0, 1)
    np.testing.assert_array_equal(higher[:, :5], HIGHER_AND_NARROWER)


@given(
    seed=st.integers(0, 1000),
    old=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    new=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
@settings(max_examples=60, deadline=None)
def test_resizing_is_bilinear(seed: int, old: tuple[int, int], new: tuple[int, int]) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*old, 1), dtype=np.uint8)

    def positions(length: int, new_length: int) -> np.ndarray:
        return ((np.arange(new_length) + 0.5) * length / new_length - 0.5).clip(0, length - 1)

    expected = image[..., 0].astype(float)
    rows = positions(old[0], new[0])
    columns = positions(old[1], new[1])
    expected = np.stack([np.interp(rows, np.arange(old[0]), c) for c in expected.T], axis=1)
    expected = np.stack([np.interp(columns, np.arange(old[1]), r) for r in expected])
    result = resize_bilinear(image, *new)
    assert result.shape == (*new, 1)
    # 11-bit weights and dropped bits: within one grey level.
    assert np.abs(result[..., 0] - expected).max() <= 1.0


def test_resizing_to_the_same_size_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_bilinear(image, 13, 17), image)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (416, 416, (416, 416)),
        (832, 1000, (416, 512)),
        (1000, 832, (512, 416)),
        (100, 101, (416, 448)),
    ],
)
def test_the_detectors_size(height: int, width: int, expected: tuple[int, int]) -> None:
    assert detector_size(height, width, CONSTANTS) == expected


def test_the_detectors_inputs() -> None:
    image = np.full((832, 1000, 3), (255, 51, 0), np.uint8)
    seen: Arrays = {}
    assert detect_faces(image, detector(seen=seen), CONSTANTS) == []
    assert sorted(seen) == ["grid_16", "grid_32", "grid_8", "image"]
    assert all(values.dtype == np.float32 for values in seen.values())
    assert seen["image"].shape == (1, 3, 416, 512)
    np.testing.assert_allclose(seen["image"][0, :, 200, 300], [1, 0.2, 0], atol=1e-7)
    for stride in (8, 16, 32):
        grid = seen[f"grid_{stride}"]
        assert grid.shape == (1, 1, 416 // stride, 512 // stride, 2)
        np.testing.assert_array_equal(grid[0, 0, 7, 11], [11, 7])


def test_a_box_is_scaled_to_the_picture() -> None:
    (face,) = find(prediction((100, 200, 40, 80), 0.9, 0.8), height=832, width=1000)
    x, y = 1000 / 512, 832 / 416
    assert face.box == pytest.approx((80 * x, 160 * y, 120 * x, 240 * y))
    assert face.score == pytest.approx(0.72)
    np.testing.assert_allclose(face.landmarks, np.arange(1, 11).reshape(5, 2) * [x, y])


@pytest.mark.parametrize(
    ("confidence", "share", "count"),
    [(0.9, 0.6, 1), (0.5, 1.0, 0), (0.51, 1.0, 1), (0.9, 0.5, 0), (float("nan"), 1.0, 0)],
)
def test_doubtful_faces_are_dropped(confidence: float, share: float, count: int) -> None:
    assert len(find(prediction((100, 100, 50, 50), confidence, share))) == count


def test_largest_first_and_the_surer_of_equals() -> None:
    faces = find(
        prediction((50, 50, 20, 20), 0.95),
        prediction((150, 50, 60, 40), 0.6),
        prediction((250, 50, 40, 60), 0.8),
    )
    assert [round(face.score, 2) for face in faces] == [0.8, 0.6, 0.95]


def test_overlapping_boxes_are_one_face() -> None:
    faces = find(
        prediction((100, 100, 50, 50), 0.7),
        prediction((102, 100, 60, 60), 0.9),
        prediction((300, 300, 50, 50), 0.6),
    )
    assert [round(face.score, 2) for face in faces] == [0.9, 0.6]


def test_equally_sure_boxes_keep_their_order() -> None:
    corners = np.arange(200, dtype=np.float32)[:, np.newaxis] * [20, 0]
    boxes = np.concatenate((corners, corners + 10), axis=1)
    scores = np.where(np.arange(200) % 2, 0.8, 0.9).astype(np.float32)
    expected = [*range(0, 200, 2), *range(1, 200, 2)]
    assert non_maximum_suppression(boxes, scores, 0.45).tolist() == expected


def test_suppression_is_greedy() -> None:
    # The second overlaps the first and goes; the third overlaps only the second and stays.
    boxes = np.array([[0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]], np.float32)
    kept = non_maximum_suppression(boxes, np.array([0.9, 0.8, 0.7], np.float32), 0.45)
    assert kept.tolist() == [0, 2]


def test_an_overlap_equal_to_the_threshold_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
    scores = np.array([0.8, 0.9], np.float32)
    assert non_maximum_suppression(boxes, scores, 0.5).tolist() == [1, 0]
    assert non_maximum_suppression(boxes, scores, 0.49).tolist() == [1]


def test_boxes_without_an_area_do_not_overlap() -> None:
    boxes = np.zeros((2, 4), np.float32)
    assert len(non_maximum_suppression(boxes, np.array([0.9, 0.8], np.float32), 0.45)) == 2


@given(seed=st.integers(0, 10_000), count=st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_suppression_separates(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 100, (count, 2))
    boxes = np.concatenate((corners, corners + random.uniform(5, 60, (count, 2))), axis=1)
    scores = random.uniform(0, 1, count)
    kept = non_maximum_suppression(boxes, scores, 0.45)

    def overlap(first: np.ndarray, second: np.ndarray) -> float:
        low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
        shared = float((high - low).clip(0).prod())
        areas = sum(float((box[2:] - box[:2]).prod()) for box in (first, second))
        return shared / (areas - shared)

    assert (np.diff(scores[kept]) <= 0).all()
    for index in range(count):
        better = [k for k in kept if scores[k] > scores[index]]
        suppressed = any(overlap(boxes[index], boxes[k]) > 0.45 for k in better)
        assert (index in kept) != suppressed


@pytest.mark.parametrize(
    "image",
    [np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3))],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        detect_faces(image, detector(), CONSTANTS)


def test_another_detectors_output_is_refused() -> None:
    with pytest.raises(BundleError, match=r"\(1, 5, 85\).*\(1, N, 16\)"):
        detect_faces(
            np.zeros((64, 64, 3), np.uint8),
            lambda inputs: {"predictions": np.zeros((1, 5, 85), np.float32)},
            CONSTANTS,
        )
