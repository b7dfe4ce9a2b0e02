"""Draws head and shoulders: a look is who is drawn, a pose is what the face does.

Lengths are in face widths, measured from the centre of the face; x grows to the right and y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from sonic_convert.drawing.painter import Color, Mask, Painter, Placement, Point, mirrored, mix

_SUPERSAMPLING = 2
_WHITE, _BLACK = (255, 255, 255), (16, 14, 16)
JAW_DROP = 0.2  # how far the lower lip sinks at an opening of 1


@dataclass(frozen=True)
class Look:
    """Who is drawn: colours and proportions, the same in every frame."""

    skin: Color
    hair: Color
    eyes: Color
    clothes: Color
    background: tuple[Color, Color]  # in the middle and at the edge
    hair_style: str = "short"  # "short", "long", "bun" or "bald"
    face_width: float = 1.0
    eye_size: float = 1.0
    eye_distance: float = 1.0
    brow_height: float = 0.0
    nose_length: float = 1.0
    mouth_width: float = 1.0
    lip_redness: float = 0.5
    beard: float = 0.0  # 0 none, 1 full
    glasses: bool = False


@dataclass(frozen=True)
class Pose:
    """What the face does in one frame; the default is the portrait at rest, its mouth closed."""

    mouth_opening: float = 0.0  # 0 closed, 1 wide open; up to 1.4
    mouth_spread: float = 0.0  # -1 rounded, 1 spread
    blink: float = 0.0  # 0 open, 1 closed
    brow_raise: float = 0.0  # -1..1
    shift: Point = (0.0, 0.0)  # of the head
    roll_radians: float = 0.0  # about the neck
    turn: float = 0.0  # -1..1, to the left or right
    nod: float = 0.0  # -1..1, up or down


REST = Pose()


def draw(
    look: Look,
    pose: Pose,
    size: tuple[int, int],
    face_centre: Point,
    face_width_pixels: float,
    stretch: float = 1.0,
) -> Image.Image:
    """Draw a face.

    Args:
        look: who.
        pose: what the face does.
        size: width and height of the picture in pixels.
        face_centre: in pixels, where the centre of the face is at rest.
        face_width_pixels: width of the face.
        stretch: height of what is drawn over its natural height.

    Returns:
        An RGB picture.
    """
    width, height = size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING
    unit = face_width_pixels * _SUPERSAMPLING
    painter = Painter(
        _background(width, height, look.background).copy(),
        (face_centre[0] * _SUPERSAMPLING, face_centre[1] * _SUPERSAMPLING),
        (unit, unit * stretch),
    )
    head = Placement(pose.shift, pose.roll_radians, pivot=(0.0, 0.8))
    shade = mix(look.skin, (60, 24, 16), 0.3)
    painter.placement = head
    _paint_hair_behind(painter, look)
    painter.placement = Placement((pose.shift[0] * 0.3, pose.shift[1] * 0.3))
    _paint_body(painter, look, shade)
    painter.placement = head
    _paint_head(painter, look, pose, shade)
    features = Placement(
        (pose.shift[0] + 0.05 * pose.turn, pose.shift[1] + 0.04 * pose.nod),
        pose.roll_radians,
        pivot=(0.0, 0.8),
    )
    painter.placement = features
    for side in (-1, 1):
        _paint_eye(painter, look, pose, side, shade)
    _paint_nose(painter, look, pose, shade)
    _paint_mouth(painter, look, pose, shade)
    painter.placement = head
    _paint_hair(painter, look)
    return painter.canvas.resize(size, Image.Resampling.BOX)


def _paint_hair_behind(painter: Painter, look: Look) -> None:
    if look.hair_style == "long":
        painter.polygon(look.hair, mirrored((0, -0.86), (0.42, -0.74), (0.66, -0.3), (0.68, 0.3),
            (0.74, 0.95), (0.4, 1.05)))  # fmt: skip
    elif look.hair_style == "bun":
        painter.ellipse(look.hair, (0.0, -0.92), (0.24, 0.2))


def _paint_body(painter: Painter, look: Look, shade: Color) -> None:
    painter.polygon(shade, mirrored((0, 0.3), (0.24, 0.3), (0.25, 0.8), (0.34, 1.1), (0.2, 1.45),
        (0, 1.5)))  # fmt: skip
    painter.polygon(look.skin, mirrored((0, 0.84), (0.2, 0.84), (0.3, 1.05), (0.2, 1.42),
        (0, 1.46)), blur=0.05)  # fmt: skip
    shirt = painter.polygon(look.clothes, mirrored((0, 1.26), (0.16, 1.16), (0.34, 0.94),
        (0.78, 1.08), (1.12, 1.34), (1.24, 2.4), (0, 2.6)))  # fmt: skip
    if shirt is not None:
        painter.ellipse(mix(look.clothes, (0, 0, 0), 0.35), (0, 2.47), (1.5, 0.73), blur=0.2,
            opacity=0.7, inside=shirt)  # fmt: skip


def _paint_head(painter: Painter, look: Look, pose: Pose, shade: Color) -> None:
    skin, wide = look.skin, look.face_width
    light = mix(skin, (255, 244, 232), 0.35)
    for side in (-1, 1):
        painter.ellipse(shade, (side * (0.5 * wide + 0.01), 0.04), (0.06, 0.16))
    jaw = 0.45 * JAW_DROP * pose.mouth_opening
    face = painter.polygon(skin, mirrored((0, -0.66), (0.27, -0.62), (0.45, -0.4),
        (0.5 * wide, -0.05), (0.47 * wide, 0.22 + 0.2 * jaw), (0.36 * wide, 0.47 + 0.7 * jaw),
        (0.17, 0.63 + jaw), (0, 0.66 + jaw)))  # fmt: skip
    if face is None:
        return
    painter.ellipse(shade, (0.59, 0.1), (0.31, 0.7), blur=0.1, opacity=0.45, inside=face)
    painter.ellipse(shade, (-0.65, 0.1), (0.25, 0.7), blur=0.08, opacity=0.25, inside=face)
    painter.ellipse(light, (-0.05, -0.33), (0.21, 0.13), blur=0.1, opacity=0.5, inside=face)
    for x in (-0.27, 0.25):
        painter.ellipse(mix(skin, (214, 84, 76), 0.3), (x, 0.18), (0.1, 0.08), blur=0.05,
            opacity=0.5, inside=face)  # fmt: skip
    if look.beard:
        _paint_beard(painter, look, jaw, face)


def _paint_beard(painter: Painter, look: Look, jaw: float, face: Mask) -> None:
    painter.polygon(mix(look.skin, look.hair, 0.85), mirrored((0, 0.24), (0.2, 0.26), (0.4, 0.16),
        (0.55, 0.1), (0.5, 0.6 + jaw), (0, 0.85 + jaw)), blur=0.03, opacity=0.8 * look.beard,
        inside=face)  # fmt: skip


def _paint_eye(painter: Painter, look: Look, pose: Pose, side: int, shade: Color) -> None:
    x, y, size = side * 0.2 * look.eye_distance, -0.06, look.eye_size
    open_ = 1 - min(max(pose.blink, 0.0), 1.0)
    painter.ellipse(shade, (x, y - 0.01), (0.13 * size, 0.07 * size), blur=0.03, opacity=0.5)
    top, bottom = 0.045 * size * open_ - 0.03 * (1 - open_), 0.04 * size * open_ + 0.03 * (1 - open_)
    if open_ > 0.15:
        wide = 0.11 * size
        lid = ((x - wide, y + 0.005), (x - 0.45 * wide, y - top), (x + 0.45 * wide, y - top),
            (x + wide, y + 0.005), (x + 0.45 * wide, y + bottom),
            (x - 0.45 * wide, y + bottom))  # fmt: skip
        white = painter.polygon((244, 242, 240), lid)
        if white is not None:
            painter.ellipse(look.eyes, (x, y - 0.002), (0.05 * size, 0.05 * size), inside=white)
            painter.ellipse(_BLACK, (x, y - 0.002), (0.024 * size, 0.024 * size), inside=white)
            painter.ellipse(_WHITE, (x - 0.019, y - 0.021), (0.009, 0.009), inside=white)
    wide = 0.115 * size
    painter.polygon((34, 26, 26), ((x - wide, y + 0.006), (x - 0.43 * wide, y - top - 0.005),
        (x + 0.43 * wide, y - top - 0.005), (x + wide, y + 0.006), (x + 0.43 * wide, y - top + 0.013),
        (x - 0.43 * wide, y - top + 0.013)), blur=0.003)  # fmt: skip
    rise = look.brow_height + 0.03 * pose.brow_raise
    painter.polygon(mix(look.hair, (20, 16, 16), 0.4), ((side * 0.08, -0.2 - rise),
        (side * 0.2, -0.235 - rise), (side * 0.33, -0.18 - rise), (side * 0.2, -0.2 - rise),
        (side * 0.09, -0.17 - rise)), blur=0.008, opacity=0.9)  # fmt: skip
    if look.glasses:
        _paint_lens(painter, x, y, side)


def _paint_lens(painter: Painter, x: float, y: float, side: int) -> None:
    for angle_start in range(4):  # four bars, as the lens inside the rim is clear
        horizontal, sign = angle_start % 2, 1 if angle_start < 2 else -1
        centre = (x, y + sign * 0.1) if horizontal else (x + sign * 0.15, y)
        radii = (0.15, 0.011) if horizontal else (0.011, 0.1)
        painter.ellipse((28, 28, 34), centre, radii)
    painter.ellipse((28, 28, 34), (x - side * 0.17, y - 0.02), (0.04, 0.01))


def _paint_nose(painter: Painter, look: Look, pose: Pose, shade: Color) -> None:
    long, lean = look.nose_length, 0.02 * pose.turn
    painter.polygon(shade, ((0.04 + lean, -0.1), (0.08 + lean, 0.1 * long), (0.1 + lean, 0.18 * long),
        (0.05 + lean, 0.2 * long), (0.02 + lean, 0.1 * long)), blur=0.02, opacity=0.6)  # fmt: skip
    painter.ellipse(mix(look.skin, (255, 244, 232), 0.35), (-0.005 + lean, 0.025), (0.025, 0.105),
        blur=0.02, opacity=0.5)  # fmt: skip
    for side in (-1, 1):
        painter.ellipse(mix(shade, (40, 10, 10), 0.5), (side * 0.045 + lean, 0.18 * long),
            (0.025, 0.015), blur=0.008, opacity=0.8)  # fmt: skip


def _paint_mouth(painter: Painter, look: Look, pose: Pose, shade: Color) -> None:
    lips = mix(look.skin, (164, 52, 60), look.lip_redness)
    opening = min(max(pose.mouth_opening, 0.0), 1.4)
    drop = JAW_DROP * opening
    wide = 0.155 * look.mouth_width * (1 + 0.22 * pose.mouth_spread - 0.12 * opening)
    corner, top, bottom = 0.352 + 0.3 * drop, 0.35 - 0.08 * drop, 0.358 + drop
    painter.polygon(lips, ((-1.05 * wide, corner), (-0.35 * wide, top - 0.037), (0, top - 0.026),
        (0.35 * wide, top - 0.037), (1.05 * wide, corner), (0.55 * wide, bottom + 0.045),
        (0, bottom + 0.062), (-0.55 * wide, bottom + 0.045)), blur=0.004)  # fmt: skip
    inside = painter.polygon(mix((58, 12, 20), look.skin, 0.04), ((-wide, corner), (-0.4 * wide, top),
        (0.4 * wide, top), (wide, corner), (0.45 * wide, bottom + 0.004),
        (-0.45 * wide, bottom + 0.004)), blur=0.002)  # fmt: skip
    if inside is not None and opening > 0.12:
        teeth = min(0.04, 0.28 * drop)
        painter.polygon((236, 230, 222), ((-0.7 * wide, top - 0.02), (0.7 * wide, top - 0.02),
            (0.6 * wide, top + teeth), (-0.6 * wide, top + teeth)), inside=inside)  # fmt: skip
        painter.ellipse((168, 72, 78), (0, bottom + 0.012), (0.5 * wide, 0.25 * drop), blur=0.01,
            inside=inside)  # fmt: skip
    painter.ellipse(mix(lips, (255, 230, 226), 0.5), (-0.005, bottom + 0.027), (0.055, 0.01), blur=0.01,
        opacity=0.7)  # fmt: skip
    painter.ellipse(shade, (0, bottom + 0.107), (0.1, 0.025), blur=0.02, opacity=0.5)


def _paint_hair(painter: Painter, look: Look) -> None:
    if look.hair_style == "bald":
        return
    crown = painter.polygon(look.hair, (*_CAP, (-0.1, -0.5), *((-x, y) for x, y in reversed(_CAP))))
    if crown is not None:
        painter.ellipse(mix(look.hair, _WHITE, 0.16), (-0.15, -0.71), (0.25, 0.11), blur=0.06,
            opacity=0.7, inside=crown)  # fmt: skip


_CAP: tuple[Point, ...] = ((0, -0.86), (0.3, -0.82), (0.52, -0.58), (0.57, -0.2), (0.53, -0.04),
    (0.46, -0.22), (0.38, -0.38), (0.16, -0.45))  # fmt: skip


@lru_cache(maxsize=8)
def _background(width: int, height: int, colors: tuple[Color, Color]) -> Image.Image:
    centre, edge = colors
    glow = Image.radial_gradient("L").resize((width, height), Image.Resampling.BICUBIC)
    return Image.composite(
        Image.new("RGB", (width, height), edge), Image.new("RGB", (width, height), centre), glow
    )
