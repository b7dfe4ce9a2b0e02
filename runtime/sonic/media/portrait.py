"""From a picture to the reference image, the face mask and the image encoder's input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

from sonic.bundle.constants import PortraitConstants
from sonic.errors import InputError, warn
from sonic.media.checks import open_input
from sonic.media.face import Face
from sonic.media.intake import decoded, first_bytes, warn_of
from sonic.options import GenerationOptions, IntakeLimits
from sonic.sandbox.picture_formats import ACCEPTED_TEXT, HEAD_BYTES, other_format, picture_format
from sonic.sandbox.process import Decoding
from sonic.sandbox.settings import PictureSettings

#: The parameter of the cubic convolution kernel (Keys 1981) that PyTorch's `interpolate` uses.
CUBIC_PARAMETER = -0.75


@dataclass(frozen=True, eq=False)
class Portrait:
    """A picture prepared for the submodels.

    Attributes:
        reference: float32 (1, 3, height, width), RGB in -1..1.
        image_encoder_input: float32 (1, 3, s, s) with s = `image_encoder_pixels`, normalised for the
            image encoder.
        face_mask: float32 (1, 1, height, width), 1 on the face and 0 elsewhere.
        face_box: x1, y1, x2, y2 of the face in pixels of `reference`, clipped to it.
        height, width: size of `reference` and of the video in pixels.
    """

    reference: np.ndarray
    image_encoder_input: np.ndarray
    face_mask: np.ndarray
    face_box: tuple[float, float, float, float]
    height: int
    width: int


def load_portrait(path: str | PathLike[str], limits: IntakeLimits | None = None) -> Image.Image:
    """Read a picture as 8-bit sRGB, rotated upright according to its EXIF data, which are dropped.

    PNG, JPEG, WebP, HEIC and AVIF are read, by a confined process (:mod:`sonic.sandbox`). Colours are
    converted from the picture's profile. Transparent areas become white; of an animation, the first frame is
    read. A warning notes these two, and a profile that cannot be used.

    Args:
        path: the file.
        limits: of file, pixels, and decoding; the environment's by default
            (:meth:`sonic.options.IntakeLimits.from_environment`).

    Raises:
        InputError: the file is missing, not a regular file, empty, damaged or not such a picture; it is
            larger than the limits, below 32 pixels on a side, or more than 8 times as long as wide; or
            decoding takes more time or memory than the limits.
        SonicError: the decoding process cannot be started.
    """
    path, limits = Path(path), limits or IntakeLimits.from_environment()
    with open_input(path, "a picture", limits.picture_megabytes) as file:
        head = first_bytes(file, HEAD_BYTES)
        kind = picture_format(head)
        if kind is None:
            known = other_format(head)
            is_what = f"is {known}, which is not read" if known else "is not a picture that can be read"
            raise InputError(f"{path} {is_what}; give {ACCEPTED_TEXT}")
        settings = PictureSettings(kind, limits.picture_megapixels * 10**6, limits.picture_scans)
        with decoded("picture", path, file, settings, limits) as decoding:
            picture = _picture(path, decoding, settings.maximum_pixels)
        warn_of(path, decoding)
        return picture


def _picture(path: Path, decoding: Decoding, maximum_pixels: int) -> Image.Image:
    """The picture from the decoder's rows."""
    width, height = decoding.header.get("width"), decoding.header.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise InputError(f"{path} cannot be decoded: its decoder says neither width nor height")
    if width * height > maximum_pixels:
        raise InputError(
            f"{path} cannot be decoded: its decoder sent {width}x{height} pixels, more than allowed"
        )
    pixels = bytearray()
    for part in decoding.data(3 * width * height):
        pixels += part
    if len(pixels) != 3 * width * height:
        raise InputError(f"{path} cannot be decoded: its decoder sent too few pixels")
    return Image.frombytes("RGB", (width, height), pixels)


def crop_box(
    box_xyxy: tuple[float, float, float, float], expand_ratio: float, width: int, height: int
) -> tuple[int, int, int, int]:
    """The square around a face to crop a picture to.

    The box is expanded by `expand_ratio` times its size on each side and clipped to the picture. Its
    longer side is then cut to the length of the shorter one, with the face as central as possible.

    Args:
        box_xyxy: the face, x1, y1, x2, y2 in pixels.
        expand_ratio: 0 or more.
        width, height: size of the picture in pixels.

    Returns:
        x1, y1, x2, y2 in pixels, inside the picture.

    Raises:
        InputError: the ratio is negative, or the box is empty or outside the picture.
    """
    if not 0 <= expand_ratio < math.inf:
        raise InputError(f"the expand ratio is {expand_ratio}; it should be 0 or more")
    _check_box(box_xyxy, width, height)
    sizes, centres = [], []
    for low, high, limit in zip(box_xyxy[:2], box_xyxy[2:], (width, height), strict=True):
        margin = expand_ratio * (high - low)
        first, last = max(low - margin, 0), min(high + margin, limit)
        sizes.append(last - first)
        centres.append((first + last) / 2)
    side = min(sizes)
    corners: list[tuple[int, int]] = []
    for axis in (0, 1):
        room = (sizes[axis] - side) / 2
        face_centre = (box_xyxy[axis] + box_xyxy[axis + 2]) / 2
        centre = centres[axis] + min(max(face_centre - centres[axis], -room), room)
        corners.append((round(centre - side / 2), round(centre + side / 2)))
    (x1, x2), (y1, y2) = corners
    return x1, y1, x2, y2


def _check_box(box_xyxy: tuple[float, float, float, float], width: int, height: int) -> None:
    x1, y1, x2, y2 = box_xyxy
    if not (x1 < x2 and y1 < y2 and x1 < width and y1 < height and x2 > 0 and y2 > 0):
        raise InputError(
            f"the face box {tuple(map(float, box_xyxy))} should be x1 < x2, y1 < y2 "
            f"and overlap the picture of {width}x{height} pixels"
        )


def output_size(width: int, height: int, resolution_pixels: int, multiple: int) -> tuple[int, int]:
    """Width and height (pixels) of the video for a picture of this size.

    The shorter side is scaled to `resolution_pixels`, then both sides are rounded to a multiple of
    `multiple` (halves to the even one).

    Raises:
        InputError: the resolution rounds to zero.
    """
    scale = resolution_pixels / min(width, height)
    new_width, new_height = (round(side * scale / multiple) * multiple for side in (width, height))
    if min(new_width, new_height) <= 0:
        raise InputError(f"the resolution is {resolution_pixels} pixels; it should be {multiple} or more")
    return new_width, new_height


def portrait_from_picture(
    picture: Image.Image,
    name: str,
    detect: Callable[[Image.Image], list[Face]],
    options: GenerationOptions,
    constants: PortraitConstants,
) -> Portrait:
    """Find the face, crop to it if the options ask for that, and prepare the result.

    Args:
        picture: RGB.
        name: the picture's name, for messages.
        detect: finds the faces in a picture, largest first.
        options: resolved; `expand_ratio` and `min_resolution` are used here.
        constants: the bundle's.

    Raises:
        InputError: no face was found, or the picture cannot be scaled to the resolution.
    """
    faces = detect(picture)
    if not faces:
        raise InputError(f"no face was found in {name}; use a picture that shows one from the front")
    if len(faces) > 1:
        warn(f"{name} shows {len(faces)} faces; the largest one is used")
    box = faces[0].box
    if options.expand_ratio is not None:
        crop = crop_box(box, options.expand_ratio, *picture.size)
        picture = picture.crop(crop)
        left, top = crop[:2]
        cropped = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        # As in the published code, the face is detected again in the crop.
        found_again = detect(picture)
        box = found_again[0].box if found_again else cropped
    resolution = options.min_resolution
    assert resolution is not None
    limit = constants.enlargement_limit_pixels
    if min(picture.size) < limit < resolution:
        what = "the face crop of " if options.expand_ratio is not None else ""
        warn(
            f"the short side of {what}{name} has {min(picture.size)} pixels, so the resolution "
            f"is lowered from {resolution} to {limit}"
        )
        resolution = limit
    return prepare_portrait(picture, box, resolution, constants)


def prepare_portrait(
    image: Image.Image,
    face_box_xyxy: tuple[float, float, float, float],
    resolution_pixels: int,
    constants: PortraitConstants,
) -> Portrait:
    """Scale a picture to the video's size and make its face mask.

    The mask is the face box, scaled about its centre by `mask_area_scale` and clipped to the picture,
    white on black; its corners are whole pixels, computed with floor divisions as in Sonic's
    published inference code. Picture and mask are resized with a Lanczos filter.

    Args:
        image: RGB.
        face_box_xyxy: x1, y1, x2, y2 in pixels of `image`.
        resolution_pixels: length of the video's shorter side, before rounding.
        constants: sizes and the image encoder's mean and standard deviation.

    Raises:
        InputError: the box is empty or outside the picture, or the resolution rounds to zero.
    """
    width, height = image.size
    _check_box(face_box_xyxy, width, height)
    size = output_size(width, height, resolution_pixels, constants.size_multiple_pixels)
    mask = Image.new("L", image.size)
    mask.paste(255, _mask_box(face_box_xyxy, width, height, constants.mask_area_scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
        mask = mask.resize(size, Image.Resampling.LANCZOS)
    side = constants.image_encoder_pixels
    small = image.resize((side, side), Image.Resampling.LANCZOS)
    half = np.float32(0.5)
    mean, deviation = (
        np.array(values, np.float32).reshape(1, 3, 1, 1)
        for values in (constants.image_encoder_mean, constants.image_encoder_std)
    )
    x1, y1, x2, y2 = face_box_xyxy
    scale_x, scale_y = size[0] / width, size[1] / height
    return Portrait(
        reference=(_planes(image) - half) / half,
        image_encoder_input=(_planes(small) - mean) / deviation,
        face_mask=_planes(mask),
        face_box=(
            max(float(x1) * scale_x, 0.0),
            max(float(y1) * scale_y, 0.0),
            min(float(x2) * scale_x, float(size[0])),
            min(float(y2) * scale_y, float(size[1])),
        ),
        height=size[1],
        width=size[0],
    )


def _mask_box(
    box_xyxy: tuple[float, float, float, float], width: int, height: int, scale: float
) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = map(float, box_xyxy)
    centre_x, centre_y = (x2 + x1) // 2, (y2 + y1) // 2
    half_x, half_y = (x2 - x1) * scale // 2, (y2 - y1) * scale // 2
    return (
        int(max(centre_x - half_x, 0)),
        int(max(centre_y - half_y, 0)),
        int(min(centre_x + half_x, width)),
        int(min(centre_y + half_y, height)),
    )


def _planes(image: Image.Image) -> np.ndarray:
    """float32 (1, channels, height, width) in 0..1."""
    pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis]) / np.float32(255)


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize as PyTorch's `interpolate(mode="bicubic", align_corners=False)` does: no antialiasing.

    As in PyTorch, values may overshoot 0..1 slightly near edges.

    Args:
        mask: float32 (1, 1, H, W).
        height, width: size of the result, in pixels or latent cells.

    Returns:
        float32 (1, 1, height, width).
    """
    rows = _cubic_matrix(mask.shape[2], height)
    columns = _cubic_matrix(mask.shape[3], width)
    resized: np.ndarray = (rows @ mask.astype(np.float64) @ columns.T).astype(np.float32)
    return resized


def _cubic_matrix(length: int, new_length: int) -> np.ndarray:
    """float64 (new_length, length): each new sample as a weighted sum of four old ones."""
    # Positions in single precision, as in PyTorch: a fused multiply-add, rounded once.
    scale = np.float64(np.float32(length) / np.float32(new_length))
    position = (scale * (np.arange(new_length) + 0.5) - 0.5).astype(np.float32)
    first = np.floor(position)
    fraction = (position - first).astype(np.float64)
    matrix = np.zeros((new_length, length))
    new = np.arange(new_length)
    for offset in range(-1, 3):
        distance = np.abs(fraction - offset)
        index = (first.astype(np.int64) + offset).clip(0, length - 1)
        np.add.at(matrix, (new, index), _cubic_kernel(distance))
    return matrix


def _cubic_kernel(distance: np.ndarray) -> np.ndarray:
    a, x = CUBIC_PARAMETER, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    weights: np.ndarray = np.where(x <= 1, near, far)
    return weights
