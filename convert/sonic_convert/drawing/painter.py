"""Paints smooth shapes with Pillow, each within its own bounding box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Color = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Placement:
    """Where a group of shapes is: rotated about `pivot`, then shifted (in units of the painter)."""

    shift: Point = (0.0, 0.0)
    angle_radians: float = 0.0
    pivot: Point = (0.0, 0.0)


@dataclass(frozen=True)
class Mask:
    """A greyscale mask, and the position of its upper left corner on the canvas."""

    image: Image.Image
    corner: tuple[int, int]


class Painter:
    """Draws in units of `unit` pixels about `centre` (pixels) on `canvas`.

    `placement` can be set between shapes; it moves what is drawn from then on.
    """

    def __init__(self, canvas: Image.Image, centre: Point, unit: Point) -> None:
        self.canvas = canvas
        self.placement = Placement()
        self._centre = np.asarray(centre)
        self._unit = np.asarray(unit)

    def polygon(
        self,
        color: Color,
        outline: tuple[Point, ...],
        blur: float = 0.0,
        opacity: float = 1.0,
        inside: Mask | None = None,
    ) -> Mask | None:
        """Paint a closed outline with rounded corners; `blur` in units; None if it is off the canvas."""
        return self._fill(color, smooth_outline(outline), blur, opacity, inside)

    def ellipse(
        self,
        color: Color,
        centre: Point,
        radii: Point,
        blur: float = 0.0,
        opacity: float = 1.0,
        inside: Mask | None = None,
    ) -> Mask | None:
        """Paint an ellipse; all lengths in units."""
        points = np.asarray(centre) + _circle() * np.asarray(radii)
        return self._fill(color, points, blur, opacity, inside)

    def _fill(
        self,
        color: Color,
        points: NDArray[np.float64],
        blur: float,
        opacity: float,
        inside: Mask | None,
    ) -> Mask | None:
        placed = self._place(points)
        radius = blur * float(self._unit.mean())
        margin = math.ceil(2.5 * radius) + 1
        low = np.maximum(np.floor(placed.min(axis=0)).astype(int) - margin, 0)
        high = np.minimum(np.ceil(placed.max(axis=0)).astype(int) + margin + 1, self.canvas.size)
        if (high <= low).any():
            return None
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        image = Image.new("L", size, 0)
        ImageDraw.Draw(image).polygon((placed - low).ravel().tolist(), fill=255)
        if radius > 0.3:
            image = image.filter(ImageFilter.GaussianBlur(radius))
        corner = (int(low[0]), int(low[1]))
        if inside is not None:
            image = ImageChops.multiply(image, _crop(inside, corner, size))
        if opacity < 1:
            image = image.point([int(value * opacity) for value in range(256)])
        self.canvas.paste(color, (*corner, corner[0] + size[0], corner[1] + size[1]), image)
        return Mask(image, corner)

    def _place(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        placement = self.placement
        cosine, sine = math.cos(placement.angle_radians), math.sin(placement.angle_radians)
        pivot = np.asarray(placement.pivot)
        rotated = (points - pivot) @ np.array([[cosine, sine], [-sine, cosine]]) + pivot
        return self._centre + (rotated + np.asarray(placement.shift)) * self._unit


def mix(color: Color, other: Color, share: float) -> Color:
    """`color` blended with `other`, whose share is 0..1."""
    mixed = [round(a + (b - a) * share) for a, b in zip(color, other, strict=True)]
    return (mixed[0], mixed[1], mixed[2])


def mirrored(*right: Point) -> tuple[Point, ...]:
    """A closed outline from its right half, given from the top to the bottom."""
    return right + tuple((-x, y) for x, y in reversed(right) if x != 0)


@lru_cache(maxsize=4096)
def smooth_outline(points: tuple[Point, ...], rounds: int = 4) -> NDArray[np.float64]:
    """Chaikin's corner cutting on a closed outline ("An algorithm for high-speed curve generation", 1974)."""
    outline = np.asarray(points, np.float64)
    for _ in range(rounds):
        following = np.roll(outline, -1, axis=0)
        outline = np.stack(
            [0.75 * outline + 0.25 * following, 0.25 * outline + 0.75 * following], axis=1
        ).reshape(-1, 2)
    return outline


@lru_cache(maxsize=1)
def _circle() -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _crop(mask: Mask, corner: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    left, top = corner[0] - mask.corner[0], corner[1] - mask.corner[1]
    return mask.image.crop((left, top, left + size[0], top + size[1]))
