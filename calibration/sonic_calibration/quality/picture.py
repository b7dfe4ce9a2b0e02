"""Image quality of a video: sharpness, flicker, and the difference between two videos.

Every metric takes one frame at a time, so videos may be spools, memory maps or generators. Luma is that
of ITU-R BT.601, from 0 to 255.
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

#: The mouth's box is enlarged by this share of its size on each side before it is excluded.
MOUTH_GROWTH = 0.1
#: Luma levels; smaller changes are invisible, and ratios of them would be meaningless.
INVISIBLE_LEVELS = 0.01
GRADIENT_SCALES = 4
_GRADIENT_CONSTANT = 170.0  # from Xue et al. 2014, for values from 0 to 255
SIMILARITY_WINDOW_PIXELS = 7  # the window of scikit-image's structural_similarity
_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


def check_frame(frame: Frame, shape: tuple[int, ...] | None = None) -> Frame:
    """Return the frame if it is uint8 (height, width, 3), and of `shape` if that is given.

    Raises:
        InputError: the frame has another shape or dtype.
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
    """Luma of an RGB picture (height, width, 3): float32 (height, width), on the picture's scale."""
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
    """Rows and columns of the pixels that a part of a face box covers, clipped to the frame.

    Args:
        face_box: (x1, y1, x2, y2) in pixels.
        columns, rows: start and end of the part, as fractions of the box's width and height.
        height, width: of the frame, in pixels.
        name: of the part, for the error message.
        growth: the part is enlarged by this share of its size on each side.

    Raises:
        InputError: the box is invalid, or the part lies outside the frame.
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
    """Rows and columns of the mouth's box (`sonic.media.lipsync`), enlarged by 10 % on each side."""
    return box_part(face_box, MOUTH_COLUMNS, MOUTH_ROWS, height, width, "mouth", MOUTH_GROWTH)


@dataclass(frozen=True)
class Sharpness:
    """How much fine detail the frames of a video have.

    Attributes:
        variance: variance of the Laplacian of luma (squared luma levels), averaged over the frames
            (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000).
        worst_variance: that of the least sharp frame.
        ratio: `variance` divided by the portrait's; 1 means equally sharp, None means no portrait.
    """

    variance: float
    worst_variance: float
    ratio: float | None


class SharpnessMeter:
    """Measures the sharpness of every frame.

    Args:
        portrait: uint8 (height, width, 3), whose sharpness the frames' is compared with; or None.

    Raises:
        InputError: the portrait has another shape or dtype.
    """

    def __init__(self, portrait: Frame | None = None) -> None:
        self._portrait = None if portrait is None else _laplacian_variance(luma_of(check_frame(portrait)))
        self._values: list[float] = []

    def update(self, luma: NDArray[np.float32]) -> None:
        """Add the next frame's luma, (height, width)."""
        self._values.append(_laplacian_variance(luma))

    @property
    def result(self) -> Sharpness:
        """Sharpness of all frames so far.

        Raises:
            InputError: there are no frames.
        """
        _check_count(len(self._values))
        variance = float(np.mean(self._values))
        # Frames of a single colour are as sharp as a portrait of a single colour.
        invisible = INVISIBLE_LEVELS**2
        ratio = None if self._portrait is None else (variance + invisible) / (self._portrait + invisible)
        return Sharpness(variance, min(self._values), ratio)


def _laplacian_variance(luma: NDArray[np.float32]) -> float:
    return float(laplace(luma, mode="nearest").var(dtype=np.float64))


def sharpness(frames: Iterable[Frame], portrait: Frame | None = None) -> Sharpness:
    """Measure the sharpness of a video with `SharpnessMeter`.

    Args:
        frames: uint8 (height, width, 3) each.
        portrait: uint8 (height, width, 3), preferably of the frames' size; or None.

    Raises:
        InputError: there are no frames, or one has another shape or dtype.
    """
    meter = SharpnessMeter(portrait)
    for frame in frames:
        meter.update(luma_of(check_frame(frame)))
    return meter.result


@dataclass(frozen=True)
class Flicker:
    """How much a video flickers.

    Attributes:
        difference: mean absolute difference of luma (0..255) between consecutive frames, outside the
            mouth's box enlarged by 10 %.
        strobe: mean of |L[t-1] - 2 L[t] + L[t+1]|, where L is the mean luma of a whole frame: steady
            changes of brightness do not count, flashes and alternating brightness do.
        border_ratio: the strobe at window borders divided by that of the other frames; 1 if the borders
            are invisible, None if there are no borders. 0.01 levels are added to both, so that the ratio
            of two invisible strobes stays near 1.
    """

    difference: float
    strobe: float
    border_ratio: float | None


class FlickerMeter:
    """Measures how much the parts of the frames that should be still change from frame to frame.

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
        """Add the next frame's luma, (height, width).

        Raises:
            InputError: the face box is invalid, does not show the mouth, or shows nothing else.
        """
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
        """Flicker of all frames so far.

        Args:
            window_borders: the first frame of every denoising window but the first. The strobe at a
                border is that of this frame and of the one before, whose second differences span the
                border.

        Raises:
            InputError: there are no frames, or a border is not between two of them.
        """
        count = len(self._levels)
        _check_count(count)
        borders = sorted(set(map(int, window_borders or ())))
        if borders and not 0 < borders[0] <= borders[-1] < count:
            raise InputError(
                f"window borders {borders} should be frames from 1 to {count - 1}, the first of a window"
            )
        # Element i belongs to frame i + 1: the first and the last frame have no second difference.
        second = np.abs(np.diff(self._levels, 2))
        at_border = np.zeros(count, bool)
        for border in borders:
            at_border[border - 1 : border + 1] = True
        at_border = at_border[1:-1]
        ratio = None
        if at_border.any() and not at_border.all():
            ratio = float(
                (second[at_border].mean() + INVISIBLE_LEVELS) / (second[~at_border].mean() + INVISIBLE_LEVELS)
            )
        difference = float(np.mean(self._differences)) if self._differences else 0.0
        return Flicker(difference, float(second.mean()) if second.size else 0.0, ratio)


def flicker(frames: Iterable[Frame], face_box: Box, window_borders: Sequence[int] | None = None) -> Flicker:
    """Measure the flicker of a video with `FlickerMeter`.

    Args:
        frames: uint8 (height, width, 3) each, all of the same shape.
        face_box: (x1, y1, x2, y2) in pixels.
        window_borders: as for `FlickerMeter.result`.

    Raises:
        InputError: there are no frames, one has another shape or dtype, the face box cannot be used, or
            a border is not between two frames.
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
    """How much two uint8 videos differ.

    Attributes:
        psnr_db: of the whole video, from the mean squared error of all frames.
        ssim: structural similarity, averaged over the frames.
        worst_frame: index of the frame with the largest mean squared error.
        worst_psnr_db: PSNR of that frame.
        gradient_distance: `gradient_distance` averaged over the frames.
    """

    psnr_db: float
    ssim: float
    worst_frame: int
    worst_psnr_db: float
    gradient_distance: float


def compare_videos(frames: VideoFrames, reference: VideoFrames) -> VideoDifference:
    """Compare two videos frame by frame; both may be memory maps or spools.

    Args:
        frames, reference: uint8 (frames, height, width, 3), at least 7x7 pixels.

    Raises:
        InputError: the shapes differ, there are no frames, or the frames are too small.
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
    """How much the edges of two pictures differ, from 0 (equal) to 1, without learned weights.

    The mean, over four scales, of the mean of 1 - (2 a b + 170) / (a^2 + b^2 + 170), where a and b are the
    gradient magnitudes of luma (Prewitt filters divided by 3). Each scale halves the one before by
    averaging 2x2 pixels; scales with a side below 3 pixels are left out. The similarity is that of Xue,
    Zhang, Mou and Bovik, "Gradient magnitude similarity deviation", 2014; taking the mean instead of the
    deviation penalises uniform blur too, and the scales capture structures larger than 3 pixels.

    Args:
        frame, expected: uint8 (height, width, 3), of the same shape.

    Raises:
        InputError: a picture has another dtype, or the shapes differ.
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
    return max(float(np.mean(distances)), 0.0)  # rounding can make it negative for equal pictures


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
