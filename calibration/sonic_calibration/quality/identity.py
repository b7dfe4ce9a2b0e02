"""How much the face of a video stays that of its portrait."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import spline_filter1d
from skimage.metrics import structural_similarity

from sonic.errors import InputError
from sonic.verification.compare import psnr_db
from sonic_calibration.quality.picture import (
    SIMILARITY_WINDOW_PIXELS,
    Box,
    Frame,
    box_part,
    check_frame,
    luma_of,
    mouth_region,
)

#: Head motion up to this many pixels is removed.
REGISTRATION_PIXELS = 3


@dataclass(frozen=True)
class Identity:
    """How much a face stays that of its portrait; of all frames, the mouth left out.

    Attributes:
        psnr_db: of the face box, from the mean squared error of all frames.
        ssim: mean structural similarity of the face box's luma.
        aligned_psnr_db, aligned_ssim: the same after removing head motion of up to 3 pixels.
        worst_aligned_psnr_db, worst_frame: of the frame where it is lowest.
        motion_pixels: mean length of the head motion that was removed.
        picture_psnr_db: of the whole picture, background and all, without alignment.
    """

    psnr_db: float
    ssim: float
    aligned_psnr_db: float
    aligned_ssim: float
    worst_aligned_psnr_db: float
    worst_frame: int
    motion_pixels: float
    picture_psnr_db: float


class IdentityMeter:
    """Compares the face of every frame with the portrait, but for the mouth.

    The face is the face box as far as it lies 3 pixels or more within the picture; the mouth is its
    box from `sonic.media.lipsync`, grown by 10 % on each side.

    Head motion is removed by the translation m within +-3 pixels with which the portrait's luma is
    nearest to the frame's (mean squared error): the best of the whole-pixel ones, improved by up to
    four Gauss-Newton steps (Lucas and Kanade, "An iterative image registration technique with an
    application to stereo vision", 1981) while they lower the error. Between pixels the portrait is
    interpolated by cubic B-splines (Unser, "Splines: a perfect fit for signal and image processing",
    1999). No translation is used where it does not lower the error of the three channels.

    Args:
        portrait: uint8 (height, width, 3), of the frames' size.
        face_box: (x1, y1, x2, y2) in its pixels.
    """

    def __init__(self, portrait: Frame, face_box: Box) -> None:
        portrait = check_frame(portrait)
        height, width = portrait.shape[:2]
        mouth = mouth_region(face_box, height, width)
        self._face = self._inner(box_part(face_box, (0, 1), (0, 1), height, width, "face"), portrait)
        outside = np.ones((height, width), bool)
        outside[mouth] = False
        self._outside, self._mask = outside, outside[self._face]
        if not self._mask.any():
            raise InputError("the face box shows nothing but the mouth; give that of the whole face")
        self._portrait = portrait
        rows, columns = self._face
        self._shape = (rows.stop - rows.start, columns.stop - columns.start)
        # Room for a motion of 3 pixels and the 4 coefficients of a spline.
        self._margin = margin = REGISTRATION_PIXELS + 2
        padded = np.pad(portrait, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        window = padded[rows.start : rows.stop + 2 * margin, columns.start : columns.stop + 2 * margin]
        coefficients = spline_filter1d(window, 3, axis=0, mode="nearest", output=np.float32)
        self._coefficients = spline_filter1d(coefficients, 3, axis=1, mode="nearest", output=np.float32)
        self._luma_coefficients = luma_of(self._coefficients)
        self._window_luma = luma_of(window)
        self._errors: list[tuple[float, float, float]] = []
        self._similarities: list[tuple[float, float]] = []
        self._motions: list[float] = []

    @staticmethod
    def _inner(face: tuple[slice, slice], portrait: Frame) -> tuple[slice, slice]:
        edge = REGISTRATION_PIXELS
        rows, columns = (
            slice(max(part.start, edge), min(part.stop, limit - edge))
            for part, limit in zip(face, portrait.shape[:2], strict=True)
        )
        if any(part.stop - part.start < SIMILARITY_WINDOW_PIXELS for part in (rows, columns)):
            raise InputError(
                "the face covers fewer than "
                f"{SIMILARITY_WINDOW_PIXELS}x{SIMILARITY_WINDOW_PIXELS} pixels of a picture of "
                f"{portrait.shape[1]}x{portrait.shape[0]}; give the box of a larger one"
            )
        return rows, columns

    def update(self, frame: Frame) -> None:
        """Take the next frame, uint8 (height, width, 3) of the portrait's shape."""
        frame = check_frame(frame, self._portrait.shape)
        squares = np.square(frame.astype(np.float32) - self._portrait).mean(axis=2)
        face, still = frame[self._face].astype(np.float32), self._portrait[self._face]
        luma = luma_of(face)
        plain = float(squares[self._face][self._mask].mean())
        motion = self._register(luma)
        moved = self._moved(self._coefficients, motion)
        aligned = float(np.square(face - moved)[self._mask].mean())
        if aligned >= plain:
            motion, moved, aligned = np.zeros(2), still.astype(np.float32), plain
        self._errors.append((plain, aligned, float(squares[self._outside].mean())))
        similarity = self._similarity(luma, luma_of(still))
        moved_similarity = self._similarity(luma, luma_of(moved)) if motion.any() else similarity
        self._similarities.append((similarity, moved_similarity))
        self._motions.append(float(np.hypot(*motion)))

    @property
    def result(self) -> Identity:
        """Of all frames so far.

        Raises:
            InputError: there are none.
        """
        if not self._errors:
            raise InputError("there are no frames to measure; give a video with at least one")
        errors = np.array(self._errors)
        plain, aligned, picture = errors.mean(axis=0)
        worst = int(errors[:, 1].argmax())
        similarity, aligned_similarity = np.mean(self._similarities, axis=0)
        return Identity(
            psnr_db=psnr_db(float(plain)),
            ssim=float(similarity),
            aligned_psnr_db=psnr_db(float(aligned)),
            aligned_ssim=float(aligned_similarity),
            worst_aligned_psnr_db=psnr_db(float(errors[worst, 1])),
            worst_frame=worst,
            motion_pixels=float(np.mean(self._motions)),
            picture_psnr_db=psnr_db(float(picture)),
        )

    def _similarity(self, luma: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        _, every = structural_similarity(luma, other, data_range=255, full=True)
        return float(every[self._mask].mean())

    def _register(self, luma: NDArray[np.float32]) -> NDArray[np.float64]:
        """How far the face has moved, (rows, columns) in pixels: down and right are positive."""
        reach = range(-REGISTRATION_PIXELS, REGISTRATION_PIXELS + 1)
        height, width = self._shape
        errors = {}
        for down in reach:
            for right in reach:
                top, left = self._margin - down, self._margin - right
                other = self._window_luma[top : top + height, left : left + width]
                errors[down, right] = self._error(luma, other)
        start = min(errors, key=lambda motion: (errors[motion], np.hypot(*motion)))
        motion, error = np.array(start, np.float64), errors[start]
        for _ in range(4):
            expected = self._moved(self._luma_coefficients, motion)
            slopes = np.stack([np.gradient(expected, axis=axis)[self._mask] for axis in (0, 1)], axis=1)
            # expected(p - step) is about expected - slope . step
            gap = (expected - luma)[self._mask]
            step = np.linalg.lstsq(slopes.T @ slopes, slopes.T @ gap, rcond=1e-6)[0]
            proposed = np.clip(motion + step, -REGISTRATION_PIXELS, REGISTRATION_PIXELS)
            found = self._error(luma, self._moved(self._luma_coefficients, proposed))
            if found >= error:
                break
            motion, error = proposed, found
        return motion

    def _error(self, luma: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return float(np.square(luma - other)[self._mask].mean())

    def _moved(self, coefficients: NDArray[np.float32], motion: NDArray[np.float64]) -> NDArray[np.float32]:
        """The portrait's face moved down and right by `motion` pixels."""
        for axis in (0, 1):
            whole = math.floor(-motion[axis])
            t = float(-motion[axis]) - whole
            weights = (
                (1 - t) ** 3 / 6,
                (3 * t**3 - 6 * t**2 + 4) / 6,
                (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
                t**3 / 6,
            )
            start = self._margin + whole - 1
            parts = []
            for offset, weight in enumerate(weights):
                index = slice(start + offset, start + offset + self._shape[axis])
                part = coefficients[index] if axis == 0 else coefficients[:, index]
                parts.append(np.float32(weight) * part)
            coefficients = sum(parts[1:], start=parts[0])
        return coefficients


def identity(frames: Iterable[Frame], portrait: Frame, face_box: Box) -> Identity:
    """How much the face of a video stays that of its portrait: `IdentityMeter` over all frames.

    Args:
        frames: uint8 (height, width, 3) each.
        portrait: uint8 of the same shape.
        face_box: (x1, y1, x2, y2) in pixels.

    Raises:
        InputError: no frames, frames and portrait of different shapes, or a box outside them.
    """
    meter = IdentityMeter(portrait, face_box)
    for frame in frames:
        meter.update(frame)
    return meter.result
