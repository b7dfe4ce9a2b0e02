"""Drawn faces whose mouth, motion and light are known."""

from __future__ import annotations

import numpy as np

HEIGHT, WIDTH = 128, 96
BOX = (16.0, 16.0, 80.0, 112.0)
FAIR, DARK = (236, 188, 156), (104, 66, 46)


def paint(
    picture: np.ndarray, color: tuple[float, ...], centre: tuple[float, float], radii: tuple[float, float]
) -> None:
    """Draw an ellipse with smooth edges; centre and radii as (y, x) in pixels."""
    (top, left), (bottom, right) = (
        [max(int(c + sign * r) + sign, 0) for c, r in zip(centre, radii, strict=True)] for sign in (-1, 1)
    )
    part = picture[top:bottom, left:right]
    y, x = (np.mgrid[: 4 * part.shape[0], : 4 * part.shape[1]] + 0.5) / 4
    inside = np.hypot((y + top - centre[0]) / radii[0], (x + left - centre[1]) / radii[1]) < 1
    cover = inside.reshape(part.shape[0], 4, part.shape[1], 4).mean(axis=(1, 3))
    part += cover[:, :, None] * (np.array(color) - part)


def face(
    opening: float = 0.0,
    skin: tuple[int, int, int] = FAIR,
    right: float = 0.0,
    down: float = 0.0,
    light: float = 1.0,
) -> np.ndarray:
    """A face with eyes and a mouth that is up to 24 pixels high; uint8 (HEIGHT, WIDTH, 3)."""
    picture = np.full((HEIGHT, WIDTH, 3), (150.0, 170, 190))
    parts = [
        (skin, (64, 48), (52, 34)),
        ((40, 30, 30), (52, 34), (3, 5)),
        ((40, 30, 30), (52, 62), (3, 5)),
        (tuple(0.8 * value for value in skin), (70, 48), (8, 4)),
        ((50, 16, 20), (90, 48), (12 * opening, 9)),
    ]
    for color, (y, x), radii in parts:
        if min(radii) > 0:
            paint(picture, color, (y + down, x + right), radii)
    return np.clip(picture * light, 0, 255).round().astype(np.uint8)
