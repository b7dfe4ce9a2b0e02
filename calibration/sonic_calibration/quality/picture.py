"""How good the pictures of a video are: sharpness, steadiness, and two videos compared.

Every measure takes one frame at a time, so videos may be spools, memory maps or generators. Luma is
that of ITU-R BT.601 in 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import laplace, prewitt
from skimage.metrics import structural_similarity

from sonic.errors import InputError
from sonic.media.lipsync import MOUTH_COLUMNS, MOUTH_ROWS
from sonic.media.video import Video
from sonic.storage.spool import ArraySpool
from sonic.verification.compare import psnr_db

Box = tuple[float, float, float, float]
Frame = NDArray[np.uint8]
VideoFrames = NDArray[np.uint8] | ArraySpool | Video

#: The mouth's box grows by this share of its size on each side before it is left out.
MOUTH_GROWTH = 0.1
#: Luma levels; what changes less is not seen, and ratios of such changes would say nothing.
UNSEEN_LEVELS = 0.01
GRADIENT_SCALES = 4
_GRADIENT_CONSTANT = 170.0  # of Xue et al. 2014, for 0..255
SIMILARITY_WINDOW_PIXELS = 7  # of scikit-image's structural_similarity
_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


def check_frame(frame: Frame, shape: tuple[int, ...] | None = None) -> Frame:
    """The frame, if it is uint8 (height, width, 3) and of `shape` where one is given.

    Raises:
        InputError: it is not.
    """
    frame = np.asarray(frame)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
        raise InputError(
            f"a frame is {frame.dtype} of shape {frame.shape}; it should be uint8 (height, width, 3)"
        )
    if shape is not None and frame.shape != shape:
        raise InputError(f"a frame of shape {frame.shape} should be {shape}")
    return frame


def luma_of(picture: NDArray[np.generic]) -> NDArray[np.float32]:
    """Luma of (height, width, 3) RGB, float32 (height, width) in the picture's unit."""
    return np.asarray(picture, np.float32) @ _LUMA_WEIGHTS


def box_part(
    face_box: Box,
    columns: tuple[float, float],
    rows: tuple[float, float],
    height: int,
    width: int,
    name: str,
    growth: float = 0.0,
) -> tuple[slice, slice]:
    """Rows and columns of the pixels that a part of a face box touches, within the frame.

    Args:
        face_box: (x1, y1, x2, y2) in pixels.
        columns, rows: the part, as fractions of the box's width and height.
        height, width: of the frame, pixels.
        name: of the part, for the message.
        growth: the part becomes larger by this share of its size on each side.

    Raises:
        InputError: the box is none, or the part lies outside the frame.
    """
    if len(face_box) != 4 or not all(map(math.isfinite, face_box)):
        raise InputError(f"a face box of {tuple(face_box)} should be four numbers, x1, y1, x2, y2")
    x1, y1, x2, y2 = (float(value) for value in face_box)
    if not (x1 < x2 and y1 < y2):
        raise InputError(f"a face box of {x1:g}, {y1:g}, {x2:g}, {y2:g} should have x1 < x2, y1 < y2")
    slices = []
    for (first, last), low, size, limit in (
        (rows, y1, y2 - y1, height),
        (columns, x1, x2 - x1, width),
    ):
        margin = growth * (last - first)
        start = max(math.floor(low + (first - margin) * size), 0)
        slices.append(slice(start, max(min(math.ceil(low + (last + margin) * size), limit), 0)))
    if any(part.stop <= part.start for part in slices):
        raise InputError(
            f"a frame of {width}x{height} pixels does not show the {name} of a face box of "
            f"{x1:g}, {y1:g}, {x2:g}, {y2:g}; give x1, y1, x2, y2 in pixels of the frame"
        )
    return slices[0], slices[1]


def mouth_region(face_box: Box, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the mouth's box (`sonic.media.lipsync`), grown by 10 % on each side."""
    return box_part(face_box, MOUTH_COLUMNS, MOUTH_ROWS, height, width, "mouth", MOUTH_GROWTH)


@dataclass(frozen=True)
class Sharpness:
    """Fine detail of a video's frames.

    Attributes:
        variance: of the Laplacian of luma, mean over the frames, squared levels (Pech-Pacheco et al.,
            "Diatom autofocusing in brightfield microscopy", 2000).
        worst_variance: of the least sharp frame.
        ratio: `variance` over the portrait's, or None without a portrait; 1 is as sharp.
    """

    variance: float
    worst_variance: float
    ratio: float | None


class SharpnessMeter:
    """Measures the sharpness of every frame; with a portrait, uint8 (height, width, 3), against it."""

    def __init__(self, portrait: Frame | None = None) -> None:
        self._portrait = None if portrait is None else _laplacian_variance(luma_of(check_frame(portrait)))
        self._values: list[float] = []

    def update(self, luma: NDArray[np.float32]) -> None:
        """Take the next frame's luma, (height, width)."""
        self._values.append(_laplacian_variance(luma))

    @property
    def result(self) -> Sharpness:
        """Of all frames so far; InputError where there are none."""
        _check_count(len(self._values))
        variance = float(np.mean(self._values))
        # A portrait of one colour is matched by frames of one colour.
        unseen = UNSEEN_LEVELS**2
        ratio = None if self._portrait is None else (variance + unseen) / (self._portrait + unseen)
        return Sharpness(variance, min(self._values), ratio)


def _laplacian_variance(luma: NDArray[np.float32]) -> float:
    return float(laplace(luma, mode="nearest").var(dtype=np.float64))


def sharpness(frames: Iterable[Frame], portrait: Frame | None = None) -> Sharpness:
    """Variance of the Laplacian of the frames' luma, and its ratio to the portrait's.

    Args:
        frames: uint8 (height, width, 3) each.
        portrait: uint8 (height, width, 3), best of the frames' size; or None.

    Raises:
        InputError: no frames, or one of another shape or dtype.
    """
    meter = SharpnessMeter(portrait)
    for frame in frames:
        meter.update(luma_of(check_frame(frame)))
    return meter.result


@dataclass(frozen=True)
class Flicker:
    """Unrest of a video's frames.

    Attributes:
        difference: mean absolute difference of luma (0..255) between consecutive frames, outside the
            mouth's box grown by 10 %.
        strobe: mean of |L[t-1] - 2 L[t] + L[t+1]|, where L is the mean luma of a whole frame: steady
            changes of light count nothing, flashes and frames of alternating brightness do.
        border_ratio: the strobe at window borders over that of the other frames; 1 where borders do
            not show, None without borders. Both are taken 0.01 levels higher than they are, so that
            the ratio of two that nobody sees stays near 1.
    """

    difference: float
    strobe: float
    border_ratio: float | None


class FlickerMeter:
    """Measures how much what should be still changes from frame to frame.

    Args:
        face_box: (x1, y1, x2, y2) in pixels of the frames.
    """

    def __init__(self, face_box: Box) -> None:
        self._face_box = face_box
        self._previous: NDArray[np.float32] | None = None
        self._outside: NDArray[np.bool_] | None = None
        self._differences: list[float] = []
        self._levels: list[float] = []

    def update(self, luma: NDArray[np.float32]) -> None:
        """Take the next frame's luma, (height, width)."""
        if self._outside is None:
            self._outside = np.ones(luma.shape, bool)
            self._outside[mouth_region(self._face_box, *luma.shape)] = False
            if not self._outside.any():
                raise InputError("the mouth covers the whole frame; give a smaller face box")
        still = luma[self._outside]
        if self._previous is not None:
            self._differences.append(float(np.abs(still - self._previous).mean()))
        self._previous = still
        self._levels.append(float(luma.mean(dtype=np.float64)))

    def result(self, window_borders: Sequence[int] | None = None) -> Flicker:
        """Of all frames so far.

        Args:
            window_borders: the first frame of every window but the first. The strobe at a border is
                that of this frame and of the one before, whose second differences span the step.

        Raises:
            InputError: no frames, or a border that is not between two of them.
        """
        count = len(self._levels)
        _check_count(count)
        borders = sorted(set(map(int, window_borders or ())))
        if borders and not 0 < borders[0] <= borders[-1] < count:
            raise InputError(
                f"window borders {borders} should be frames from 1 to {count - 1}, the first of a window"
            )
        # [i] is that of frame i + 1: the first and the last frame have none.
        second = np.abs(np.diff(self._levels, 2))
        at_border = np.zeros(count, bool)
        for border in borders:
            at_border[border - 1 : border + 1] = True
        at_border = at_border[1:-1]
        ratio = None
        if at_border.any() and not at_border.all():
            ratio = float(
                (second[at_border].mean() + UNSEEN_LEVELS) / (second[~at_border].mean() + UNSEEN_LEVELS)
            )
        difference = float(np.mean(self._differences)) if self._differences else 0.0
        return Flicker(difference, float(second.mean()) if second.size else 0.0, ratio)


def flicker(frames: Iterable[Frame], face_box: Box, window_borders: Sequence[int] | None = None) -> Flicker:
    """Unrest of a video: `FlickerMeter` over all frames.

    Args:
        frames: uint8 (height, width, 3) each, of one shape.
        face_box: (x1, y1, x2, y2) in pixels.
        window_borders: as for `FlickerMeter.result`.
    """
    meter = FlickerMeter(face_box)
    shape = None
    for frame in frames:
        frame = check_frame(frame, shape)
        shape = frame.shape
        meter.update(luma_of(frame))
    return meter.result(window_borders)


@dataclass(frozen=True)
class VideoDifference:
    """How far two uint8 videos are apart.

    Attributes:
        psnr_db: of the whole video, from the mean squared error of all frames.
        ssim: mean structural similarity.
        worst_frame: the frame with the largest error.
        worst_psnr_db: its PSNR.
        gradient_distance: mean of `gradient_distance` over the frames.
    """

    psnr_db: float
    ssim: float
    worst_frame: int
    worst_psnr_db: float
    gradient_distance: float


def compare_videos(frames: VideoFrames, reference: VideoFrames) -> VideoDifference:
    """Compare two videos frame by frame, so that both may be memory maps or spools.

    Args:
        frames, reference: uint8 (frames, height, width, 3), at least 7x7 pixels.

    Raises:
        InputError: shapes that differ, no frames, or frames that are too small.
    """
    shape = tuple(frames.shape)
    if shape != tuple(reference.shape):
        raise InputError(f"videos of shapes {shape} and {tuple(reference.shape)} should be of one shape")
    if len(shape) != 4 or min(shape[1:3]) < SIMILARITY_WINDOW_PIXELS:
        raise InputError(
            f"videos of shape {shape} should be (frames, height, width, 3) with frames of at least "
            f"{SIMILARITY_WINDOW_PIXELS}x{SIMILARITY_WINDOW_PIXELS} pixels"
        )
    _check_count(shape[0])
    errors, similarities, distances = [], [], []
    for frame, expected in zip(frames, reference, strict=True):
        frame, expected = check_frame(frame), check_frame(expected)
        errors.append(float(np.mean((frame.astype(np.float64) - expected) ** 2)))
        similarities.append(structural_similarity(frame, expected, channel_axis=2))
        distances.append(gradient_distance(frame, expected))
    worst = int(np.argmax(errors))
    return VideoDifference(
        psnr_db=psnr_db(float(np.mean(errors))),
        ssim=float(np.mean(similarities)),
        worst_frame=worst,
        worst_psnr_db=psnr_db(errors[worst]),
        gradient_distance=float(np.mean(distances)),
    )


def gradient_distance(frame: Frame, expected: Frame) -> float:
    """How much the edges of two pictures differ, 0 (equal) to 1: no learned weights are needed.

    The mean over four scales (each half as large as the one before, by 2x2 means; fewer where a side
    would fall below 3 pixels) of the mean of 1 - (2 a b + 170) / (a^2 + b^2 + 170), where a and b are
    the gradient magnitudes of luma by Prewitt's filters / 3. The similarity is that of Xue, Zhang, Mou
    and Bovik, "Gradient magnitude similarity deviation", 2014; the mean in place of the deviation makes
    even blur count, and the scales make it see what is coarser than 3 pixels.

    Args:
        frame, expected: uint8 (height, width, 3) of one shape.

    Raises:
        InputError: pictures of another dtype, or of different shapes.
    """
    expected = check_frame(expected)
    one, other = luma_of(check_frame(frame, expected.shape)), luma_of(expected)
    distances = []
    for scale in range(GRADIENT_SCALES):
        if scale:
            one, other = _halved(one), _halved(other)
            if min(one.shape) < 3:
                break
        a, b = _gradient_magnitude(one), _gradient_magnitude(other)
        similarity = (2 * a * b + _GRADIENT_CONSTANT) / (a * a + b * b + _GRADIENT_CONSTANT)
        distances.append(float((1 - similarity).mean(dtype=np.float64)))
    return max(float(np.mean(distances)), 0.0)  # rounding may leave equal pictures below 0


def _halved(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = (side // 2 * 2 for side in luma.shape)
    rows = luma[0:height:2] + luma[1:height:2]
    return (rows[:, 0:width:2] + rows[:, 1:width:2]) * np.float32(0.25)


def _gradient_magnitude(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    down, right = (prewitt(luma, axis=axis, mode="nearest") for axis in (0, 1))
    return np.hypot(down, right) * np.float32(1 / 3)


def _check_count(frames: int) -> None:
    if not frames:
        raise InputError("there are no frames to measure; give a video with at least one")
