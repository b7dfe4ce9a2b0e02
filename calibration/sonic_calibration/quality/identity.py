"""Identity preservation: how much the face in a video stays like the face in its portrait."""

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

#: Head motion of up to this many pixels is compensated.
REGISTRATION_PIXELS = 3


@dataclass(frozen=True)
class Identity:
    """How similar the frames of a video are to its portrait, the mouth excluded.

    Attributes:
        psnr_db: PSNR of the face box, from the mean squared error of all frames.
        ssim: structural similarity of the face box's luma, averaged over the frames.
        aligned_psnr_db, aligned_ssim: the same after compensating head motion of up to 3 pixels.
        worst_aligned_psnr_db: the lowest `aligned_psnr_db` of a single frame.
        worst_frame: the index of that frame.
        motion_pixels: mean length of the compensated head motion.
        picture_psnr_db: PSNR of the whole picture, including the background, without alignment.
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
    """Compares the face in every frame, except for the mouth, with the portrait.

    The face is the part of the face box that is at least 3 pixels inside the picture; the mouth is the box
    given by `sonic.media.lipsync`, enlarged by 10 % on each side.

    Head motion is compensated by the translation of up to 3 pixels in each direction that minimises the
    mean squared error between the portrait's luma and the frame's: the best whole-pixel translation,
    refined by up to four Gauss-Newton steps (Lucas and Kanade, "An iterative image registration technique
    with an application to stereo vision", 1981) as long as they lower the error. Between pixels the
    portrait is interpolated with cubic B-splines (Unser, "Splines: a perfect fit for signal and image
    processing", 1999). If the translation does not lower the error of the three colour channels, none is
    used.

    Args:
        portrait: uint8 (height, width, 3), of the frames' size.
        face_box: (x1, y1, x2, y2) in pixels of the portrait.

    Raises:
        InputError: the portrait has another shape or dtype, the face box lies outside it, shows nothing but
            the mouth, or is smaller than 7x7 pixels.
    """

    def __init__(self, portrait: Frame, face_box: Box) -> None:
        portrait = check_frame(portrait)
        height, width = portrait.shape[:2]
        mouth = mouth_region(face_box, height, width)
        self._face = self._inside_margin(box_part(face_box, (0, 1), (0, 1), height, width, "face"), portrait)
        outside = np.ones((height, width), bool)
        outside[mouth] = False
        self._outside, self._mask = outside, outside[self._face]
        if not self._mask.any():
            raise InputError("the face box shows nothing but the mouth; give that of the whole face")
        self._portrait = portrait
        rows, columns = self._face
        self._shape = (rows.stop - rows.start, columns.stop - columns.start)
        # Enough for a motion of 3 pixels and the 4 coefficients of a spline.
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
    def _inside_margin(face: tuple[slice, slice], portrait: Frame) -> tuple[slice, slice]:
        """The part of the face that stays within the picture when it moves by up to 3 pixels."""
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
        """Add the next frame, uint8 (height, width, 3) of the portrait's shape.

        Raises:
            InputError: the frame has another shape or dtype.
        """
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
        """Similarity of all frames so far.

        Raises:
            InputError: there are no frames.
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
        _, similarity_map = structural_similarity(luma, other, data_range=255, full=True)
        return float(similarity_map[self._mask].mean())

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
            # To first order, expected(p - step) = expected - slope . step.
            residual = (expected - luma)[self._mask]
            step = np.linalg.lstsq(slopes.T @ slopes, slopes.T @ residual, rcond=1e-6)[0]
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
    """Compare the face in a video with its portrait, using `IdentityMeter`.

    Args:
        frames: uint8 (height, width, 3) each.
        portrait: uint8 of the same shape.
        face_box: (x1, y1, x2, y2) in pixels.

    Raises:
        InputError: there are no frames, frames and portrait differ in shape, or the face box cannot be used
            (`IdentityMeter`).
    """
    meter = IdentityMeter(portrait, face_box)
    for frame in frames:
        meter.update(frame)
    return meter.result
