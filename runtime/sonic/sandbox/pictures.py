"""Decoding a picture to 8-bit sRGB without transparency; runs in the confined process."""

from __future__ import annotations

import importlib
import io
import re
import warnings
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
    image = _read(file, settings, notes)
    width, height = image.size
    messages.header(width=width, height=height)
    rows = max(1, DATA_BYTES // (3 * width))
    for top in range(0, height, rows):  # in parts, as a copy of a large picture is large
        messages.data(image.crop((0, top, width, min(top + rows, height))).tobytes())
    messages.end(notes=notes)


def _read(file: BinaryIO, settings: PictureSettings, notes: list[str]) -> Image.Image:
    try:
        if settings.format == "JPEG":
            _check_scans(file, settings.maximum_scans)
        with warnings.catch_warnings():
            # Pillow warns about odd EXIF data, which is harmless, and about sizes, which are checked below
            # before any pixel is decoded.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=[settings.format]) as image:
                _check_size(*image.size, settings.maximum_pixels)
                if settings.format != "JPEG" and getattr(image, "is_animated", False):
                    notes.append("holds several pictures; the first one is used")
                image.load()
                return _plain(ImageOps.exif_transpose(image), notes)
    except (Refusal, MemoryError):
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


def _plain(image: Image.Image, notes: list[str]) -> Image.Image:
    """8-bit sRGB of what is seen of the picture."""
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F"):
        raise Refusal("has 32-bit pixels; save it with 8 bits per channel")
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it: keep the high bytes.
        high = image.tobytes()[0 if image.mode.endswith("B") else 1 :: 2]
        image = Image.frombytes("L", image.size, high)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La", "1") else "RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] == 255:
            alpha = None
        image = image.convert("L" if image.mode == "LA" else "RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    if profile:
        image = _in_srgb(image, profile, notes)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None:
        notes.append("has transparent areas, which become white")
        flat = Image.new("RGB", image.size, BACKGROUND)
        flat.paste(image, mask=alpha)
        image = flat
    return image


def _in_srgb(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    """Convert a picture from its colour profile; one that cannot be used is ignored, which is noted."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        mode = _PROFILE_MODES[source.profile.xcolor_space]
        if image.mode != mode:
            image = image.convert(mode) if mode != "CMYK" else image
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        assert converted is not None
        return converted
    except (ImageCms.PyCMSError, OSError, KeyError, TypeError, ValueError):
        notes.append("has a colour profile that cannot be used; its colours are taken as sRGB")
        return image
