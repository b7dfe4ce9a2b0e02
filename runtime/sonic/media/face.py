"""Finding faces in a picture: pre- and postprocessing of the face detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sonic.bundle.constants import FaceConstants
from sonic.errors import BundleError, InputError

#: cx, cy, w, h; objectness; x, y of five landmarks; probability of the class given an object
PREDICTION_VALUES = 16
#: OpenCV's bilinear weights for 8-bit images are 11-bit integers.
_WEIGHT_ONE = 2_048


@dataclass(frozen=True, eq=False)
class Face:
    """One face found in a picture.

    Attributes:
        box: x1, y1, x2, y2 in the picture's pixels; may extend beyond its edges.
        score: confidence, 0..1.
        landmarks: float64 (5, 2), x and y of the eyes, the nose and the corners of the mouth in
            the picture's pixels.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: np.ndarray

    @classmethod
    def at(cls, box: tuple[float, float, float, float]) -> Face:
        """A face at a known position, which needs no detector; its score is 1, its landmarks are NaN."""
        return cls(box, 1.0, np.full((5, 2), np.nan))


def detect_faces(
    image_rgb: np.ndarray,
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    constants: FaceConstants,
) -> list[Face]:
    """Find the faces in a picture, largest first.

    Args:
        image_rgb: uint8 (H, W, 3).
        run: runs the face detector on ``image``, float32 (1, 3, h, w) in 0..1, and
            ``grid_<stride>``, float32 (1, 1, h // stride, w // stride, 2); returns
            ``predictions``, float32 (1, N, 16).
        constants: input size and thresholds.

    Raises:
        InputError: the picture has another shape or dtype.
        BundleError: the detector's predictions have another shape.
    """
    if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8:
        raise InputError(f"a picture is {image_rgb.dtype} {image_rgb.shape}; it should be uint8 (H, W, 3)")
    height, width = image_rgb.shape[:2]
    input_height, input_width = detector_size(height, width, constants)
    resized = resize_bilinear(image_rgb, input_height, input_width)
    inputs = {"image": resized.transpose(2, 0, 1)[np.newaxis].astype(np.float32) / 255}
    for stride in constants.strides_pixels:
        inputs[f"grid_{stride}"] = _grid(input_height // stride, input_width // stride)
    predictions = run(inputs)["predictions"]
    if predictions.ndim != 3 or predictions.shape[::2] != (1, PREDICTION_VALUES):
        raise BundleError(
            f"the face detector's predictions have shape {predictions.shape}; "
            f"it should be (1, N, {PREDICTION_VALUES})"
        )
    boxes, scores, landmarks = _select(predictions[0], constants)
    scale = np.array([width / input_width, height / input_height])
    faces = [
        Face(tuple(box.tolist()), float(score), points)
        for box, score, points in zip(
            boxes * np.tile(scale, 2), scores, landmarks.reshape(-1, 5, 2) * scale, strict=True
        )
    ]
    return sorted(faces, key=_area, reverse=True)


def detector_size(height: int, width: int, constants: FaceConstants) -> tuple[int, int]:
    """Height and width (pixels) of the detector's input for a picture of this size.

    The short side is scaled to `minimum_side_pixels`; then both sides are rounded up to a multiple of
    `size_multiple_pixels`.
    """
    ratio = constants.minimum_side_pixels / min(height, width)
    multiple = constants.size_multiple_pixels
    input_height, input_width = (
        int(side * ratio + (multiple - 1)) // multiple * multiple for side in (height, width)
    )
    return input_height, input_width


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize as OpenCV's `resize(..., INTER_LINEAR)` does for 8-bit images: no antialiasing.

    The detector was trained on images resized this way, and its thresholds were chosen on them.
    OpenCV calculates with integers: it uses 11-bit weights, and drops the 4 lowest bits between the
    horizontal and the vertical pass.

    Args:
        image: uint8 (H, W, channels).
        height, width: size of the result in pixels.

    Returns:
        uint8 (height, width, channels).
    """
    upper, lower, weight_upper, weight_lower = _neighbours(image.shape[0], height)
    left, right, weight_left, weight_right = _neighbours(image.shape[1], width)

    def row(index: np.ndarray, weight: np.ndarray) -> np.ndarray:
        mixed = image[np.ix_(index, left)] * weight_left[:, np.newaxis]
        mixed += image[np.ix_(index, right)] * weight_right[:, np.newaxis]
        rounded: np.ndarray = ((mixed >> 4) * weight[:, np.newaxis, np.newaxis]) >> 16
        return rounded

    resized: np.ndarray = ((row(upper, weight_upper) + row(lower, weight_lower) + 2) >> 2).astype(np.uint8)
    return resized


def _neighbours(length: int, new_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the two source pixels of each new pixel, and their int32 weights, all (new_length,)."""
    scale = 1.0 / (new_length / length)
    position = ((np.arange(new_length) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    fraction = position - first.astype(np.float32)
    one = np.float32(1)
    weights = [
        np.rint(share * np.float32(_WEIGHT_ONE)).astype(np.int32) for share in (one - fraction, fraction)
    ]
    last = length - 1
    return first.clip(0, last), (first + 1).clip(0, last), weights[0], weights[1]


def _grid(rows: int, columns: int) -> np.ndarray:
    """x and y of each cell, float32 (1, 1, rows, columns, 2)."""
    y, x = np.mgrid[:rows, :columns]
    return np.stack((x, y), axis=-1).astype(np.float32)[np.newaxis, np.newaxis]


def _select(predictions: np.ndarray, constants: FaceConstants) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) as corners, scores (n,) and landmarks (n, 10) that pass the thresholds."""
    candidates = predictions[predictions[:, 4] > constants.confidence]
    scores = candidates[:, 15] * candidates[:, 4]
    confident = scores > constants.confidence
    candidates, scores = candidates[confident], scores[confident]
    half = candidates[:, 2:4] / 2
    boxes = np.concatenate((candidates[:, :2] - half, candidates[:, :2] + half), axis=1)
    kept = non_maximum_suppression(boxes, scores, constants.intersection_over_union)
    return boxes[kept].astype(np.float64), scores[kept], candidates[kept, 5:15].astype(np.float64)


def non_maximum_suppression(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of the boxes to keep, best score first.

    Greedy: a box is dropped when its intersection over union with a kept box of a better score is
    above the threshold, as in `torchvision.ops.nms`.

    Args:
        boxes: float (n, 4) as x1, y1, x2, y2.
        scores: float (n,).
        threshold: intersection over union, 0..1.

    Returns:
        int64 (kept,).
    """
    order = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        corner_1 = np.maximum(boxes[best, :2], boxes[order, :2])
        corner_2 = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (corner_2 - corner_1).clip(0).prod(axis=1)
        union = areas[best] + areas[order] - shared
        with np.errstate(invalid="ignore"):  # two boxes without area: NaN, so both are kept
            order = order[~(shared / union > threshold)]
    return np.array(kept, np.int64)


def _area(face: Face) -> float:
    x1, y1, x2, y2 = face.box
    return (x2 - x1) * (y2 - y1)
