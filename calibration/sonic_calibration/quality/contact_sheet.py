"""A contact sheet: one picture that sums up a talking-head video with frames, waveform and mouth opening."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sonic.errors import InputError
from sonic.media.audio import Sound
from sonic.media.lipsync import MOUTH_COLUMNS, MOUTH_ROWS
from sonic.media.video import Video
from sonic.storage.files import replace_file
from sonic_calibration.quality.mouth import LipSync, lip_sync, mouth_opening, speech_opening
from sonic_calibration.quality.picture import Box, box_part

Color = tuple[int, int, int]

# Lengths are in pixels of the sheet.
_WIDTH = 1600
_MARGIN = 60
_GAP = 8
_WAVEFORM_HEIGHT = 110
_CURVES_HEIGHT = 170
_AXIS_WIDTH = _WIDTH - 2 * _MARGIN
_MAXIMUM_TILE_HEIGHT = 420
_PANEL_SCALE = 3  # panels are drawn larger and scaled down, as Pillow does not antialias lines

_BACKGROUND: Color = (250, 250, 247)
_PANEL: Color = (255, 255, 255)
_GRID: Color = (226, 228, 226)
_BORDER: Color = (200, 203, 202)
_TEXT: Color = (34, 40, 46)
_FAINT_TEXT: Color = (104, 112, 118)
_WAVE: Color = (164, 180, 196)
_WAVE_POWER: Color = (98, 120, 144)
_MEASURED: Color = (204, 62, 74)
_DRIVEN: Color = (0, 118, 138)


def write_contact_sheet(
    path: str | os.PathLike[str],
    video: Video,
    face_box: Box | None = None,
    frames: int = 8,
    title: str = "",
) -> None:
    """Draw the contact sheet of a video, a PNG of 1600 pixels width.

    From top to bottom:

    - evenly spaced frames with their times, each centred above its position on the time axis;
    - with a face box, an enlarged view of the mouth in each of these frames;
    - the waveform: minimum, maximum and root mean square of the samples in each column, scaled so that the
      loudest sample has full height;
    - the mouth opening measured in the frames, scaled from its 5th to its 95th percentile, the opening that
      the sound implies, and the correlation and the lag of the two.

    Args:
        path: the file, .png; replaced if it exists, and written atomically.
        video: has at least one frame; without sound, the panels that need it are omitted.
        face_box: (x1, y1, x2, y2) of the face in pixels of the video; None omits the panels that need it.
        frames: number of frames to show, 1 to 24; at most as many as the video has.
        title: the heading; empty for none.

    Raises:
        InputError: the file name, the number of frames or the face box cannot be used, or the video has no
            frames.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: a contact sheet's name should end in .png")
    if not 1 <= frames <= 24:
        raise InputError(f"a contact sheet of {frames} frames should have 1 to 24")
    if not len(video):
        raise InputError("there are no frames to show; give a video with at least one")
    sheet = _draw(video, face_box, min(frames, len(video)), title)
    replace_file(path, lambda partial: sheet.save(partial, format="PNG", optimize=True))


def _draw(video: Video, face_box: Box | None, tiles: int, title: str) -> Image.Image:
    """The finished sheet."""
    duration = video.duration_seconds
    seconds = [(index + 0.5) * duration / tiles for index in range(tiles)]
    shown = [video[min(int(t * video.frame_rate_hz), len(video) - 1)] for t in seconds]
    tile_width = _AXIS_WIDTH // tiles - _GAP
    strips = [[_fit(frame, tile_width) for frame in shown]]
    measured = driven = None
    if face_box is not None:
        mouth = box_part(
            face_box, MOUTH_COLUMNS, MOUTH_ROWS, video.shape[1], video.shape[2], "mouth", growth=0.2
        )
        strips.append([_fit(frame[mouth], tile_width) for frame in shown])
        measured = mouth_opening(video, face_box)
    sheet = _Sheet(duration)
    sheet.heading(title, _facts(video))
    sheet.strip(strips[0], seconds, captions=True)
    if len(strips) > 1:
        sheet.strip(strips[1], seconds, captions=False)
    if video.sound is not None:
        driven = speech_opening(video.sound, len(video), video.frame_rate_hz)
        sheet.label("sound")
        sheet.panel(_waveform(video.sound, duration), _WAVEFORM_HEIGHT)
    if measured is not None or driven is not None:
        curves = _curves(measured, driven)
        note = ""
        if measured is not None and driven is not None:
            note = _note(lip_sync(measured, driven, video.frame_rate_hz))
        sheet.label("mouth opening", [(curve.name, curve.color) for curve in curves], note)
        sheet.panel(_plot(curves, video.frame_rate_hz, duration), _CURVES_HEIGHT)
    sheet.time_axis()
    return sheet.finish()


def _note(sync: LipSync) -> str:
    text = f"correlation {sync.correlation:.2f}"
    if sync.lag_frames == 0:
        return f"{text}, best without a lag"
    frames = f"{sync.lag_frames:+d} frame" + ("s" if abs(sync.lag_frames) > 1 else "")
    when = f"{sync.lag_seconds * 1000:+.0f} ms, mouth {'late' if sync.lag_frames > 0 else 'early'}"
    return f"{text}, best {sync.best_correlation:.2f} at {frames} ({when})"


def _facts(video: Video) -> str:
    count, height, width, _ = video.shape
    sound = "no sound" if video.sound is None else f"sound at {video.sound.sample_rate_hz} Hz"
    frames = "1 frame" if count == 1 else f"{count} frames"
    size = f"{width} x {height} at {video.frame_rate_hz:g} Hz"
    return f"{video.duration_seconds:.2f} s, {frames} of {size}, {sound}"


def _fit(pixels: NDArray[np.uint8], width: int) -> Image.Image:
    """Scale a picture to this width, or to the maximum height if it would be taller."""
    height_now, width_now = pixels.shape[:2]
    scale = min(width / width_now, _MAXIMUM_TILE_HEIGHT / height_now)
    size = (max(round(width_now * scale), 1), max(round(height_now * scale), 1))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.LANCZOS)


class _Sheet:
    """A canvas that is filled from top to bottom; everything on it shares one time axis."""

    def __init__(self, duration_seconds: float) -> None:
        self._duration = duration_seconds
        self._ticks = _tick_seconds(duration_seconds)
        self._canvas = Image.new("RGB", (_WIDTH, 4000), _BACKGROUND)
        self._draw = ImageDraw.Draw(self._canvas)
        self._y = 36

    def _x(self, seconds: float) -> float:
        return _MARGIN + seconds / self._duration * _AXIS_WIDTH

    def _write(self, x: float, y: float, text: str, size: int, color: Color, anchor: str) -> None:
        self._draw.text((x, y), text, font=_font(size), fill=color, anchor=anchor)

    def heading(self, title: str, facts: str) -> None:
        """Add the title, shortened to the sheet's width, and a line of facts."""
        if title:
            while self._draw.textlength(title, font=_font(30)) > _AXIS_WIDTH:
                title = title.removesuffix("...")[:-1] + "..."
            self._write(_MARGIN, self._y, title, 30, _TEXT, "la")
            self._y += 42
        self._write(_MARGIN, self._y, facts, 18, _FAINT_TEXT, "la")
        self._y += 36

    def strip(self, pictures: list[Image.Image], seconds: list[float], captions: bool) -> None:
        """Add a row of pictures, each centred at its time."""
        for picture, time in zip(pictures, seconds, strict=True):
            left = round(self._x(time) - picture.width / 2)
            self._canvas.paste(picture, (left, self._y))
            box = (left, self._y, left + picture.width - 1, self._y + picture.height - 1)
            self._draw.rectangle(box, outline=_BORDER)
            if captions:
                self._write(
                    left + picture.width / 2, self._y + picture.height + 5, f"{time:.2f} s", 16, _TEXT, "ma"
                )
        self._y += max(picture.height for picture in pictures) + (36 if captions else 20)

    def label(self, text: str, legend: list[tuple[str, Color]] | None = None, note: str = "") -> None:
        """Add the name of the next panel, a legend of its colours, and a note at the right."""
        self._write(_MARGIN, self._y, text, 18, _TEXT, "la")
        x = _MARGIN + self._draw.textlength(text, font=_font(18)) + 32
        for name, color in legend or []:
            self._draw.rounded_rectangle((x, self._y + 10, x + 26, self._y + 14), 2, fill=color)
            self._write(x + 34, self._y + 2, name, 16, color, "la")
            x += 34 + self._draw.textlength(name, font=_font(16)) + 28
        if note:
            self._write(_WIDTH - _MARGIN, self._y, note, 18, _TEXT, "ra")
        self._y += 30

    def panel(self, layer: _Layer, height: int) -> None:
        """Add a panel that shows the layer over a grid along the time axis."""
        scale = _PANEL_SCALE
        panel = Image.new("RGB", (_AXIS_WIDTH * scale, height * scale), _PANEL)
        draw = ImageDraw.Draw(panel)
        for tick in self._ticks:
            x = tick / self._duration * panel.width
            draw.line((x, 0, x, panel.height), fill=_GRID, width=scale)
        for name, level in layer.levels:
            y = level * panel.height
            draw.line((0, y, panel.width, y), fill=_GRID, width=scale)
            self._write(_MARGIN - 8, self._y + level * height, name, 13, _FAINT_TEXT, "rm")
        for bar_color, bars in layer.bars:
            for column, (top, bottom) in enumerate(bars):
                if bottom >= top:
                    box = (column * scale, top * panel.height, (column + 1) * scale - 1,
                           max(bottom * panel.height, top * panel.height + scale))  # fmt: skip
                    draw.rectangle(box, fill=bar_color)
        for line_color, points in layer.lines:
            scaled = [(x * panel.width, y * panel.height) for x, y in points]
            dense = len(scaled) > _AXIS_WIDTH // 12  # single frames are no longer distinguishable
            draw.line(scaled, fill=line_color, width=(4 if dense else 7) * scale // 3, joint="curve")
            if not dense:
                radius = 2.6 * scale
                for x, y in scaled:
                    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=line_color)
        self._canvas.paste(panel.reduce(scale), (_MARGIN, self._y))
        box = (_MARGIN - 1, self._y - 1, _MARGIN + _AXIS_WIDTH, self._y + height)
        self._draw.rectangle(box, outline=_BORDER)
        self._y += height + 14

    def time_axis(self) -> None:
        """Add the times of the grid lines."""
        self._y -= 6
        decimals = next(n for n in range(9) if all(abs(round(t, n) - t) < 1e-9 for t in self._ticks))
        for tick in self._ticks:
            x = self._x(tick)
            self._draw.line((x, self._y - 8, x, self._y - 3), fill=_FAINT_TEXT)
            anchor = "la" if tick == 0 else "ma"
            if x < _WIDTH - _MARGIN - 8:  # otherwise half of the text would be in the margin
                self._write(x, self._y, f"{tick:.{decimals}f}", 16, _FAINT_TEXT, anchor)
        self._write(_WIDTH - _MARGIN, self._y, "seconds", 16, _FAINT_TEXT, "ra")
        self._y += 22

    def finish(self) -> Image.Image:
        """The canvas, cropped to the part that was filled."""
        return self._canvas.crop((0, 0, _WIDTH, self._y + 32))


@dataclass(frozen=True)
class _Layer:
    """The content of a panel; positions are fractions of its width and height, from the top left.

    Attributes:
        bars: groups of vertical bars, one per column of pixels, each given by its top and bottom.
        lines: polylines of (x, y).
        levels: labelled horizontal grid lines.
    """

    bars: list[tuple[Color, list[tuple[float, float]]]]
    lines: list[tuple[Color, list[tuple[float, float]]]]
    levels: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class _Curve:
    name: str
    color: Color
    values: NDArray[np.float64]  # (frames,), mostly within 0..1


def _curves(measured: NDArray[np.float64] | None, driven: NDArray[np.float64] | None) -> list[_Curve]:
    curves = []
    if driven is not None:
        curves.append(_Curve("expected from the sound", _DRIVEN, driven))
    if measured is not None:
        low, high = np.percentile(measured, (5, 95))
        span = high - low if high - low > 1e-9 else 1.0
        curves.append(_Curve("measured in the frames", _MEASURED, (measured - low) / span))
    return curves


def _plot(curves: list[_Curve], frame_rate_hz: float, duration: float) -> _Layer:
    def height(value: float) -> float:
        return 0.9 - 0.8 * min(max(value, -0.1), 1.1)  # leaves space beyond both percentiles

    lines = []
    for curve in curves:
        x = (np.arange(len(curve.values)) + 0.5) / frame_rate_hz / duration
        y = [height(float(value)) for value in curve.values]
        lines.append((curve.color, list(zip(x.tolist(), y, strict=True))))
    return _Layer([], lines, (("closed", height(0)), ("", height(0.5)), ("open", height(1))))


def _waveform(sound: Sound, duration: float) -> _Layer:
    """Bars from the minimum to the maximum sample of each column, and bars of its root mean square."""
    edges = np.rint(np.arange(_AXIS_WIDTH + 1) / _AXIS_WIDTH * duration * sound.sample_rate_hz).astype(int)
    peaks, powers = [], []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        samples = sound.samples[start : max(stop, start + 1)].astype(np.float32).mean(axis=1)
        if samples.size:
            peaks.append((float(samples.min()), float(samples.max())))
            powers.append(math.sqrt(float(np.square(samples).mean())))
    loudest = max((max(abs(low), abs(high)) for low, high in peaks), default=0.0) or 1.0
    scale = 0.46 / loudest
    outer = [(0.5 - high * scale, 0.5 - low * scale) for low, high in peaks]
    inner = [(0.5 - power * scale, 0.5 + power * scale) for power in powers]
    return _Layer([(_WAVE, outer), (_WAVE_POWER, inner)], [], (("", 0.5),))


def _tick_seconds(duration: float) -> list[float]:
    """At most 14 round times, starting at 0, in steps of 1, 2 or 5 times a power of ten."""
    step = 10.0 ** math.floor(math.log10(duration / 14))
    while duration / step > 14:
        step *= 2.5 if f"{step:.0e}".startswith("2") else 2
    return [index * step for index in range(int(duration / step + 1e-9) + 1)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
