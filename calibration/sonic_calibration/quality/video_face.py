"""The face of a video, and the portrait it is held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sonic.errors import InputError, warn
from sonic.media.face import detect_faces
from sonic.media.portrait import load_portrait
from sonic.media.video import Video
from sonic.model import SonicModel, load_model
from sonic_calibration.quality.picture import Box

#: How much narrower or wider than its video a portrait may be without a warning: rounding to
#: multiples of 64 pixels changes the shape of small videos by about this much.
SHAPE_TOLERANCE = 0.1


def parse_box(text: str | None, bundle: str | None) -> Box | None:
    """The box of ``--face-box``, or None where a bundle is to find the face.

    Raises:
        InputError: both are given, or none, or the text is not four numbers x1,y1,x2,y2.
    """
    if (text is None) == (bundle is None):
        raise InputError(
            "give either --bundle, whose face detector finds the face, or --face-box x1,y1,x2,y2"
        )
    if text is None:
        return None
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"the face box is '{text}'; it should be four numbers, x1,y1,x2,y2, in pixels"
        ) from None
    return x1, y1, x2, y2


def find_face(video: Video, bundle: str, name: str) -> Box:
    """The largest face of the first frame, (x1, y1, x2, y2) in pixels, by a bundle's detector.

    Args:
        video: with at least one frame.
        bundle: a name or a path.
        name: of the video, for the message.

    Raises:
        BundleError: there is no such bundle, or it cannot be run.
        InputError: no face was found.
    """
    hint = "give --face-box x1,y1,x2,y2"
    return largest_face(video[0], load_model(bundle), f"the first frame of {name}", hint)


def largest_face(
    frame: NDArray[np.uint8], model: SonicModel, name: str, hint: str = "give another picture"
) -> Box:
    """The largest face of a frame, (x1, y1, x2, y2) in pixels.

    Raises:
        InputError: no face was found; `name` says where, `hint` what to do.
    """
    with model.engine.open("face_detector") as detector:
        faces = detect_faces(frame, detector.run, model.constants.face)
    if not faces:
        raise InputError(f"no face was found in {name}; {hint}")
    return faces[0].box


def portrait_of_size(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """A portrait scaled to a video's size, as `sonic.media.portrait.prepare_portrait` does.

    Warns where the shapes differ, as those of a crop (``--expand-ratio``) do.

    Returns:
        uint8 (height, width, 3).

    Raises:
        InputError: the picture cannot be used.
    """
    picture = load_portrait(path)
    change = width / height / (picture.width / picture.height)
    if not 1 - SHAPE_TOLERANCE < change < 1 / (1 - SHAPE_TOLERANCE):
        warn(
            f"{path} has {picture.width}x{picture.height} pixels and the video {width}x{height}; if the "
            "video was made from a crop, give that crop"
        )
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture)
