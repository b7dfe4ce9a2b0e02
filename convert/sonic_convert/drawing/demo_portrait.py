"""A drawn portrait: a face that belongs to nobody, for examples and tests."""

from __future__ import annotations

import random

from PIL import Image

from sonic_convert.drawing.face import REST, Look, draw
from sonic_convert.drawing.painter import Color, Point

_SKINS: tuple[Color, ...] = (
    (246, 214, 190),
    (236, 188, 156),
    (214, 160, 122),
    (182, 126, 90),
    (142, 92, 64),
    (104, 66, 46),
)
_HAIRS: tuple[Color, ...] = (
    (30, 26, 28),
    (56, 40, 34),
    (96, 84, 80),
    (42, 44, 58),
    (120, 116, 118),
)
_EYES: tuple[Color, ...] = ((74, 52, 38), (62, 92, 112), (70, 96, 66), (50, 42, 40))
_CLOTHES: tuple[Color, ...] = (
    (44, 92, 124),
    (60, 112, 84),
    (86, 74, 130),
    (52, 58, 70),
    (40, 120, 128),
)
_BACKGROUNDS: tuple[tuple[Color, Color], ...] = (
    ((198, 214, 224), (138, 160, 178)),
    ((206, 216, 206), (142, 162, 148)),
    ((214, 214, 220), (158, 158, 172)),
    ((190, 206, 214), (120, 140, 160)),
)


def draw_portrait(
    seed: int = 0, size: tuple[int, int] = (576, 704), face_position: Point = (0.5, 0.45)
) -> Image.Image:
    """Draw head and shoulders; `seed` chooses skin, hair, eyes, clothes and background.

    Args:
        seed: the same seed gives the same picture; six in a row have six skin tones.
        size: width and height in pixels.
        face_position: centre of the face as fractions of width and height.

    Returns:
        An RGB picture. The face is about 0.36 of the shorter of the width and 0.82 of the height.
    """
    choose = random.Random(seed)
    look = Look(
        skin=_SKINS[seed % len(_SKINS)],
        hair=choose.choice(_HAIRS),
        eyes=choose.choice(_EYES),
        clothes=choose.choice(_CLOTHES),
        background=choose.choice(_BACKGROUNDS),
        hair_style="long" if choose.random() < 0.5 else "short",
        face_width=choose.uniform(0.96, 1.04),
    )
    centre = (size[0] * face_position[0], size[1] * face_position[1])
    return draw(look, REST, size, centre, _face_width(size))


def face_box(
    size: tuple[int, int] = (576, 704), face_position: Point = (0.5, 0.45)
) -> tuple[float, float, float, float]:
    """Where :func:`draw_portrait` puts the face, hairline to chin: x1, y1, x2, y2 in pixels."""
    x, y = size[0] * face_position[0], size[1] * face_position[1]
    width = _face_width(size)
    return x - 0.5 * width, y - 0.48 * width, x + 0.5 * width, y + 0.66 * width


def _face_width(size: tuple[int, int]) -> float:
    return 0.36 * min(size[0], 0.82 * size[1])
