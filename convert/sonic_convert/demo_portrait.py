"""A drawn portrait: a face that belongs to nobody, for examples and tests."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Color = tuple[int, int, int]
Point = tuple[float, float]

_SUPERSAMPLING = 2
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


@dataclass(frozen=True)
class _Look:
    skin: Color
    hair: Color
    eyes: Color
    clothes: Color
    background: tuple[Color, Color]
    long_hair: bool
    face_width: float


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
    look = _Look(
        skin=_SKINS[seed % len(_SKINS)],
        hair=choose.choice(_HAIRS),
        eyes=choose.choice(_EYES),
        clothes=choose.choice(_CLOTHES),
        background=choose.choice(_BACKGROUNDS),
        long_hair=choose.random() < 0.5,
        face_width=choose.uniform(0.96, 1.04),
    )
    width, height = size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING
    canvas = _background(width, height, look)
    painter = _Painter(
        canvas, (width * face_position[0], height * face_position[1]), _face_width((width, height))
    )
    _paint(painter, look)
    return painter.canvas.resize(size, Image.Resampling.LANCZOS)


def face_box(
    size: tuple[int, int] = (576, 704), face_position: Point = (0.5, 0.45)
) -> tuple[float, float, float, float]:
    """Where :func:`draw_portrait` puts the face, hairline to chin: x1, y1, x2, y2 in pixels."""
    x, y = size[0] * face_position[0], size[1] * face_position[1]
    width = _face_width(size)
    return x - 0.5 * width, y - 0.48 * width, x + 0.5 * width, y + 0.66 * width


def _face_width(size: tuple[int, int]) -> float:
    return 0.36 * min(size[0], 0.82 * size[1])


class _Painter:
    """Draws in units of the face's width about the face's centre."""

    def __init__(self, canvas: Image.Image, centre: Point, unit: float) -> None:
        self.canvas = canvas
        self.centre = centre
        self.unit = unit

    def place(self, point: Point) -> Point:
        return (
            self.centre[0] + point[0] * self.unit,
            self.centre[1] + point[1] * self.unit,
        )

    def mask(self, shapes: list[tuple[str, list[Point]]], blur: float = 0.0) -> Image.Image:
        """Where any of `shapes` ('ellipse' of two corners, or 'polygon') is."""
        mask = Image.new("L", self.canvas.size, 0)
        draw = ImageDraw.Draw(mask)
        for kind, points in shapes:
            placed = [self.place(point) for point in points]
            if kind == "ellipse":
                draw.ellipse([*placed[0], *placed[1]], fill=255)
            else:
                draw.polygon(_smooth(placed), fill=255)
        return mask.filter(ImageFilter.GaussianBlur(blur * self.unit)) if blur else mask

    def fill(
        self,
        color: Color,
        shapes: list[tuple[str, list[Point]]],
        blur: float = 0.0,
        opacity: float = 1.0,
        inside: Image.Image | None = None,
    ) -> Image.Image:
        """Paint `shapes` and return their mask."""
        mask = self.mask(shapes, blur)
        if inside is not None:
            mask = ImageChops.multiply(mask, inside)
        if opacity < 1:
            mask = mask.point(lambda value: int(value * opacity))
        self.canvas.paste(Image.new("RGB", self.canvas.size, color), mask=mask)
        return mask


def _paint(painter: _Painter, look: _Look) -> None:
    skin, hair, wide = look.skin, look.hair, look.face_width
    shade, light = _mix(skin, (60, 24, 16), 0.3), _mix(skin, (255, 244, 232), 0.35)
    hair_light = _mix(hair, (255, 255, 255), 0.16)
    if look.long_hair:
        painter.fill(hair, [("polygon", _mirror([(0, -0.86), (0.42, -0.74), (0.66, -0.3),
            (0.68, 0.3), (0.74, 0.95), (0.4, 1.05)]))])  # fmt: skip
    painter.fill(shade, [("polygon", _mirror([(0, 0.3), (0.24, 0.3), (0.25, 0.8), (0.34, 1.1),
        (0.2, 1.45), (0, 1.5)]))])  # fmt: skip
    painter.fill(skin, [("polygon", _mirror([(0, 0.84), (0.2, 0.84), (0.3, 1.05), (0.2, 1.42),
        (0, 1.46)]))], blur=0.05)  # fmt: skip
    shirt = painter.fill(look.clothes, [("polygon", _mirror([(0, 1.26), (0.16, 1.16), (0.34, 0.94),
        (0.78, 1.08), (1.12, 1.34), (1.24, 2.4), (0, 2.6)]))])  # fmt: skip
    painter.fill(_mix(look.clothes, (0, 0, 0), 0.35), [("ellipse", [(-1.5, 1.75), (1.5, 3.2)])],
        blur=0.2, opacity=0.7, inside=shirt)  # fmt: skip
    for side in (-1, 1):
        painter.fill(shade, [("ellipse", _order((side * 0.45, -0.12), (side * 0.57, 0.2)))])
    outline = [(0, -0.66), (0.27, -0.62), (0.45, -0.4), (0.5 * wide, -0.05), (0.47 * wide, 0.22),
        (0.36, 0.47), (0.17, 0.63), (0, 0.66)]  # fmt: skip
    face = painter.fill(skin, [("polygon", _mirror(outline))])
    painter.fill(shade, [("ellipse", [(0.28, -0.6), (0.9, 0.8)])], blur=0.1, opacity=0.45,
        inside=face)  # fmt: skip
    painter.fill(shade, [("ellipse", [(-0.9, -0.6), (-0.4, 0.8)])], blur=0.08, opacity=0.25,
        inside=face)  # fmt: skip
    painter.fill(light, [("ellipse", [(-0.26, -0.46), (0.16, -0.2)])], blur=0.1, opacity=0.5,
        inside=face)  # fmt: skip
    for x in (-0.27, 0.25):
        painter.fill(_mix(skin, (214, 84, 76), 0.3), [("ellipse", [(x - 0.1, 0.1),
            (x + 0.1, 0.26)])], blur=0.05, opacity=0.5, inside=face)  # fmt: skip
    for side in (-1, 1):
        _paint_eye(painter, look, side, shade)
    painter.fill(shade, [("polygon", [(0.04, -0.1), (0.08, 0.1), (0.1, 0.18), (0.05, 0.2),
        (0.02, 0.1)])], blur=0.02, opacity=0.6)  # fmt: skip
    painter.fill(light, [("ellipse", [(-0.03, -0.08), (0.02, 0.13)])], blur=0.02, opacity=0.5)
    for side in (-1, 1):
        painter.fill(_mix(shade, (40, 10, 10), 0.5), [("ellipse", _order((side * 0.02, 0.165),
            (side * 0.07, 0.195)))], blur=0.008, opacity=0.8)  # fmt: skip
    _paint_mouth(painter, look, shade)
    cap = [(0, -0.86), (0.3, -0.82), (0.52, -0.58), (0.57, -0.2), (0.53, -0.04), (0.46, -0.22),
        (0.38, -0.38), (0.16, -0.45)]  # fmt: skip
    mirrored = [(-x, y) for x, y in reversed(cap)]
    crown = painter.fill(hair, [("polygon", [*cap, (-0.1, -0.5), *mirrored])])
    painter.fill(hair_light, [("ellipse", [(-0.4, -0.82), (0.1, -0.6)])], blur=0.06, opacity=0.7,
        inside=crown)  # fmt: skip


def _paint_eye(painter: _Painter, look: _Look, side: int, shade: Color) -> None:
    x, y = side * 0.2, -0.06
    painter.fill(shade, [("ellipse", [(x - 0.13, y - 0.08), (x + 0.13, y + 0.06)])], blur=0.03,
        opacity=0.5)  # fmt: skip
    lid = [(x - 0.11, y + 0.005), (x - 0.05, y - 0.045), (x + 0.05, y - 0.045),
        (x + 0.11, y + 0.005), (x + 0.05, y + 0.04), (x - 0.05, y + 0.04)]  # fmt: skip
    white = painter.fill((244, 242, 240), [("polygon", lid)])
    painter.fill(look.eyes, [("ellipse", [(x - 0.05, y - 0.052), (x + 0.05, y + 0.048)])],
        inside=white)  # fmt: skip
    painter.fill((16, 14, 16), [("ellipse", [(x - 0.024, y - 0.026), (x + 0.024, y + 0.022)])],
        inside=white)  # fmt: skip
    painter.fill((255, 255, 255), [("ellipse", [(x - 0.028, y - 0.03), (x - 0.01, y - 0.012)])])
    painter.fill((34, 26, 26), [("polygon", [(x - 0.115, y + 0.006), (x - 0.05, y - 0.05),
        (x + 0.05, y - 0.05), (x + 0.115, y + 0.006), (x + 0.05, y - 0.032),
        (x - 0.05, y - 0.032)])], blur=0.003)  # fmt: skip
    brow = [(side * 0.08, -0.2), (side * 0.2, -0.235), (side * 0.33, -0.18), (side * 0.2, -0.2),
        (side * 0.09, -0.17)]  # fmt: skip
    painter.fill(_mix(look.hair, (20, 16, 16), 0.4), [("polygon", brow)], blur=0.008, opacity=0.9)


def _paint_mouth(painter: _Painter, look: _Look, shade: Color) -> None:
    lips = _mix(look.skin, (164, 52, 60), 0.5)
    painter.fill(lips, [("polygon", [(-0.16, 0.35), (-0.05, 0.315), (0, 0.325), (0.05, 0.315),
        (0.16, 0.35), (0.08, 0.405), (0, 0.42), (-0.08, 0.405)])], blur=0.004)  # fmt: skip
    painter.fill(_mix(lips, (40, 8, 12), 0.7), [("polygon", [(-0.15, 0.352), (-0.05, 0.35),
        (0.05, 0.35), (0.15, 0.352), (0.05, 0.364), (-0.05, 0.364)])], blur=0.003)  # fmt: skip
    painter.fill(_mix(lips, (255, 230, 226), 0.5), [("ellipse", [(-0.06, 0.375), (0.05, 0.395)])],
        blur=0.01, opacity=0.7)  # fmt: skip
    painter.fill(shade, [("ellipse", [(-0.1, 0.44), (0.1, 0.49)])], blur=0.02, opacity=0.5)


def _background(width: int, height: int, look: _Look) -> Image.Image:
    centre, edge = look.background
    glow = Image.radial_gradient("L").resize((width, height), Image.Resampling.BICUBIC)
    return Image.composite(
        Image.new("RGB", (width, height), edge), Image.new("RGB", (width, height), centre), glow
    )


def _mix(color: Color, other: Color, share: float) -> Color:
    mixed = [round(a + (b - a) * share) for a, b in zip(color, other, strict=True)]
    return (mixed[0], mixed[1], mixed[2])


def _mirror(right: list[Point]) -> list[Point]:
    """A closed outline from its right half, given from the top to the bottom."""
    return right + [(-x, y) for x, y in reversed(right) if x != 0]


def _order(a: Point, b: Point) -> list[Point]:
    return [(min(a[0], b[0]), a[1]), (max(a[0], b[0]), b[1])]


def _smooth(points: list[Point], rounds: int = 4) -> list[Point]:
    """Chaikin's corner cutting, on a closed outline."""
    for _ in range(rounds):
        cut: list[Point] = []
        for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
            cut.append((0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by))
            cut.append((0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by))
        points = cut
    return points
