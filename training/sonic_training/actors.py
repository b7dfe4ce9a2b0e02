"""The drawn people of the training data: random looks, framings and head motion."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sonic_convert.drawing.face import REST, Look, Pose, draw
from sonic_convert.drawing.painter import Color, mix

MOTION_BUCKET_OF_FULL_MOTION = 32.0  # translation bucket = 32 * head motion (about 0..1)
EXPRESSION_BUCKET_OF_NORMAL_SPEECH = 20.0  # expression bucket = 20 * mouth amplitude (about 0.3..1.4)

_SKINS: tuple[Color, ...] = ((250, 222, 200), (236, 188, 156), (214, 160, 122), (182, 126, 90),
    (142, 92, 64), (92, 58, 40))  # fmt: skip
_HAIRS: tuple[Color, ...] = ((24, 22, 24), (56, 40, 34), (104, 70, 40), (190, 150, 84),
    (150, 66, 34), (120, 116, 118), (212, 208, 204))  # fmt: skip
_EYES: tuple[Color, ...] = ((74, 52, 38), (62, 92, 132), (70, 106, 66), (40, 32, 30))
_STYLES = ("short", "short", "long", "long", "bun", "bald")


@dataclass(frozen=True)
class Framing:
    """Position and size of the face in a square picture.

    Attributes:
        size_pixels: side of the picture.
        centre: (x, y) of the face's centre in pixels.
        face_width_pixels: width of the face.
        stretch: vertical scale of the face; 1 draws it with its natural proportions.
    """

    size_pixels: int
    centre: tuple[float, float]
    face_width_pixels: float
    stretch: float

    @property
    def face_box(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2) in pixels, from hairline to chin in the rest pose."""
        (x, y), wide = self.centre, self.face_width_pixels
        tall = wide * self.stretch
        return x - 0.5 * wide, y - 0.48 * tall, x + 0.5 * wide, y + 0.66 * tall


def random_look(generator: np.random.Generator) -> Look:
    """A random person; colours are interpolated between the entries of the tables."""

    def between(colors: tuple[Color, ...]) -> Color:
        first, second = generator.integers(len(colors), size=2)
        if len(colors) == len(_SKINS):  # only neighbours, as a mix of fair and dark skin looks grey
            second = min(first + 1, len(colors) - 1)
        return mix(colors[first], colors[second], float(generator.random()))

    hue = generator.integers(30, 226, size=3)
    grey = int(generator.integers(70, 210))
    share = float(generator.uniform(0.2, 1.0))
    middle = mix((grey, grey, grey), tuple(int(c) for c in generator.integers(60, 230, 3)), 0.45)  # type: ignore[arg-type]
    return Look(
        skin=between(_SKINS),
        hair=between(_HAIRS),
        eyes=between(_EYES),
        clothes=mix((grey, grey, grey), (int(hue[0]), int(hue[1]), int(hue[2])), share),
        background=(middle, mix(middle, (0, 0, 0), float(generator.uniform(0.0, 0.4)))),
        hair_style=str(generator.choice(_STYLES)),
        face_width=float(generator.uniform(0.93, 1.06)),
        eye_size=float(generator.uniform(0.88, 1.15)),
        eye_distance=float(generator.uniform(0.92, 1.08)),
        brow_height=float(generator.uniform(-0.02, 0.03)),
        nose_length=float(generator.uniform(0.9, 1.1)),
        mouth_width=float(generator.uniform(0.88, 1.15)),
        lip_redness=float(generator.uniform(0.25, 0.7)),
        beard=float(generator.uniform(0.3, 1.0)) if generator.random() < 0.12 else 0.0,
        glasses=bool(generator.random() < 0.12),
    )


def random_framing(generator: np.random.Generator, size_pixels: int) -> Framing:
    """A random framing: the face takes 0.33 to 0.62 of the picture's width and is near the middle."""
    wide = float(generator.uniform(0.33, 0.62)) * size_pixels
    stretch = float(generator.choice([1.0, 1.0, generator.uniform(0.8, 1.1)]))
    slack = (size_pixels - 1.14 * wide * stretch) / size_pixels
    x = size_pixels * float(generator.uniform(0.44, 0.56))
    # The face box's middle is 0.09 face widths below the face's centre.
    y = size_pixels * float(generator.uniform(0.5 - 0.22 * slack, 0.5 + 0.18 * slack)) - 0.09 * wide
    return Framing(size_pixels, (x, y), wide, stretch)


def head_motion(
    generator: np.random.Generator, frames: int, frame_rate_hz: float, amount: float
) -> list[Pose]:
    """Random poses with a closed mouth: slow turns and nods that grow with `amount` (0..1), and blinks."""
    slow = _slow_noise(generator, frames, frame_rate_hz, 6)
    blink = np.zeros(frames)
    second = float(generator.exponential(2.5))
    while second < frames / frame_rate_hz:
        start = int(second * frame_rate_hz)
        for offset, value in enumerate((0.5, 1.0, 0.4)):
            if start + offset < frames:
                blink[start + offset] = value
        second += 0.6 + float(generator.exponential(3.0))
    return [
        replace(
            REST,
            blink=float(blink[index]),
            brow_raise=float(0.6 * amount * x[5]),
            shift=(float(0.022 * amount * x[0]), float(0.016 * amount * x[1])),
            roll_radians=float(0.022 * amount * x[2]),
            turn=float(0.5 * amount * x[3]),
            nod=float(0.45 * amount * x[4]),
        )
        for index, x in enumerate(slow)
    ]


def draw_poses(look: Look, poses: list[Pose], framing: Framing) -> NDArray[np.uint8]:
    """Draw one frame per pose: uint8 (frames, size, size, 3)."""
    size = (framing.size_pixels, framing.size_pixels)
    return np.stack(
        [
            np.asarray(draw(look, pose, size, framing.centre, framing.face_width_pixels, framing.stretch))
            for pose in poses
        ]
    )


def _slow_noise(
    generator: np.random.Generator, frames: int, frame_rate_hz: float, channels: int
) -> NDArray[np.float64]:
    """Smooth noise below 0.7 Hz with about unit variance, (frames, channels)."""
    times = np.arange(frames)[:, None] / frame_rate_hz
    values = np.zeros((frames, channels))
    for _ in range(4):
        hertz = generator.uniform(0.08, 0.7, channels)
        values += np.sin(2 * np.pi * (hertz * times + generator.random(channels)))
    return values / np.sqrt(2)
