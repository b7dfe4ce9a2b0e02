"""Decoding a picture to 8-bit sRGB without transparency; runs in the confined process."""

from __future__ import annotations

import importlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from sonic.sandbox.protocol import DATA_BYTES, Messages, Refusal
from sonic.sandbox.settings import PictureSettings

#: The colour under transparent areas.
BACKGROUND = (255, 255, 255)
MINIMUM_SIDE_PIXELS = 32
MAXIMUM_ASPECT_RATIO = 8
# A marker in a JPEG's compressed data that is no escaped byte and no restart.
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MARKERS_ALONE = (0x01, 0xD8)
# What Pillow would import while it reads a picture. TiffImagePlugin reads EXIF data.
_MODULES = {
    "PNG": ("TiffImagePlugin",),
    "JPEG": ("MpoImagePlugin", "TiffImagePlugin"),
    "WEBP": ("WebPImagePlugin", "TiffImagePlugin"),
    "AVIF": ("AvifImagePlugin", "TiffImagePlugin"),
    "HEIF": ("TiffImagePlugin",),
}
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def prepare(settings: PictureSettings) -> None:
    """Load the reader; no other can be loaded once the process is confined.

    Raises:
        ImportError: it is not installed, or Pillow was built without it.
    """
    if settings.format == "HEIF":
        import pi_heif

        pi_heif.register_heif_opener(thumbnails=False)
    Image.preinit()
    for module in _MODULES.get(settings.format, ()):
        importlib.import_module(f"PIL.{module}")
    if settings.format not in Image.OPEN:
        raise ImportError(f"this Pillow has no reader for {settings.format}")


def decode(file: BinaryIO, settings: PictureSettings, messages: Messages) -> None:
    """Send the picture's size and its rows, uint8 (height, width, 3).

    Raises:
        Refusal: it is damaged, too large, too small or too long.
    """
    notes: list[str] = []
    with _damage_refused(settings):
        image = _read(file, settings, notes)
        width, height = image.size
        messages.header(width=width, height=height)
        to_plain = Plain(image)
        rows = max(1, DATA_BYTES // (4 * width))
        for top in range(0, height, rows):  # in parts, as copies of a large picture take much memory
            part = image.crop((0, top, width, min(top + rows, height)))
            messages.data(to_plain(part).tobytes())
    messages.end(notes=notes + to_plain.notes)


def _read(file: BinaryIO, settings: PictureSettings, notes: list[str]) -> Image.Image:
    """The decoded picture, upright, in its own mode."""
    if settings.format == "JPEG":
        _check_scans(file, settings.maximum_scans)
    image = Image.open(file, formats=[settings.format])
    _check_size(*image.size, settings.maximum_pixels)
    if settings.format != "JPEG" and getattr(image, "is_animated", False):
        notes.append("holds several pictures; the first one is used")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


@contextmanager
def _damage_refused(settings: PictureSettings) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # Pillow warns about odd EXIF data, which is harmless, and about sizes, which are checked here
            # before any pixel is decoded.
            warnings.simplefilter("ignore")
            yield
    except (Refusal, MemoryError, BrokenPipeError):
        raise
    except Image.DecompressionBombError as error:
        raise Refusal(_too_large(settings.maximum_pixels)) from error
    except UnidentifiedImageError as error:
        raise Refusal(f"is a damaged {settings.format} picture") from error
    except Exception as error:  # readers raise many kinds of errors on damaged files
        raise Refusal(f"is damaged ({error})") from error


def _too_large(maximum_pixels: int) -> str:
    return f"is too large; give a picture of at most {maximum_pixels / 1e6:g} megapixels"


def _check_size(width: int, height: int, maximum_pixels: int) -> None:
    if width * height > maximum_pixels:
        raise Refusal(
            f"has {width}x{height} pixels; give a picture of at most {maximum_pixels / 1e6:g} megapixels"
        )
    if min(width, height) < MINIMUM_SIDE_PIXELS:
        raise Refusal(
            f"has {width}x{height} pixels; "
            f"give a picture of at least {MINIMUM_SIDE_PIXELS} pixels on each side"
        )
    if max(width, height) > MAXIMUM_ASPECT_RATIO * min(width, height):
        raise Refusal(
            f"has {width}x{height} pixels; give a picture whose longer side is at most "
            f"{MAXIMUM_ASPECT_RATIO} times the shorter"
        )


def _check_scans(file: BinaryIO, maximum: int) -> None:
    """Count the scans of a JPEG without decoding any."""
    data = file.read()
    file.seek(0)
    scans = position = 0
    while (match := _JPEG_MARKER.search(data, position)) and match[1][0] != _END_OF_IMAGE:
        position = match.end()
        if match[1][0] not in _MARKERS_ALONE:
            position += int.from_bytes(data[position : position + 2], "big")
        scans += match[1][0] == _START_OF_SCAN
        if scans > maximum:
            raise Refusal(
                f"is a JPEG picture of more than {maximum} scans, which would take long to decode; "
                "save it again with usual settings"
            )


class Plain:
    """Converts a picture, or a part of it, to what is seen of it: 8-bit sRGB without transparency.

    Args:
        image: the whole picture; its mode, profile and transparency are taken from it.

    Attributes:
        notes: what a user may want to know, as the rest of a sentence that starts with the file's name.

    Raises:
        Refusal: the picture has 32-bit pixels.
    """

    def __init__(self, image: Image.Image) -> None:
        if image.mode in ("I", "F"):
            raise Refusal("has 32-bit pixels; save it with 8 bits per channel")
        self.notes: list[str] = []
        self._transparent = image.has_transparency_data and not image.mode.startswith("I;16")
        grey = image.mode in ("L", "LA", "La", "1") or image.mode.startswith("I;16")
        self._mode = image.mode if image.mode == "CMYK" else "L" if grey else "RGB"
        self._transform = self._to_srgb(image.info.get("icc_profile"))
        self._noted_transparency = False

    def __call__(self, image: Image.Image) -> Image.Image:
        """Convert; returns the mode RGB."""
        alpha = None
        if image.mode.startswith("I;16"):
            # Pillow would clip 16-bit grey at 255 instead of scaling it: keep the high bytes.
            high = image.tobytes()[0 if image.mode.endswith("B") else 1 :: 2]
            image = Image.frombytes("L", image.size, high)
        if self._transparent:
            image = image.convert("LA" if self._mode == "L" else "RGBA")
            alpha = image.getchannel("A")
        image = image.convert(self._mode)
        if self._transform is not None:
            image = ImageCms.applyTransform(image, self._transform) or image
        image = image.convert("RGB")
        if alpha is None or alpha.getextrema()[0] == 255:
            return image
        if not self._noted_transparency:
            self.notes.append("has transparent areas, which become white")
            self._noted_transparency = True
        flat = Image.new("RGB", image.size, BACKGROUND)
        flat.paste(image, mask=alpha)
        return flat

    def _to_srgb(self, profile: bytes | None) -> ImageCms.ImageCmsTransform | None:
        """The conversion from a colour profile; one that cannot be used is ignored, which is noted."""
        if not profile:
            return None
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" in ImageCms.getProfileDescription(source):
                return None
            if _PROFILE_MODES[source.profile.xcolor_space] != self._mode:
                raise ValueError("the profile is for another kind of colours")
            return ImageCms.buildTransform(
                source,
                ImageCms.createProfile("sRGB"),
                self._mode,
                "RGB",
                ImageCms.Intent.RELATIVE_COLORIMETRIC,
                ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        except (ImageCms.PyCMSError, OSError, KeyError, TypeError, ValueError):
            self.notes.append("has a colour profile that cannot be used; its colours are taken as sRGB")
            return None
