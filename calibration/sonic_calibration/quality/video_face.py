"""The face box of a video, and the portrait that the video is compared with."""

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

#: A portrait's aspect ratio may differ by this share from the video's without a warning: rounding to
#: multiples of 64 pixels changes the aspect ratio of small videos by about this much.
ASPECT_TOLERANCE = 0.1


def parse_box(text: str | None, bundle: str | None) -> Box | None:
    """Parse the value of ``--face-box``.

    Args:
        text: ``x1,y1,x2,y2`` in pixels, or None.
        bundle: the value of ``--bundle``, or None.

    Returns:
        (x1, y1, x2, y2) in pixels, or None if the bundle's detector is to find the face.

    Raises:
        InputError: both or neither of the options are given, or the text is not four numbers.
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
    """Find the largest face in the first frame with a bundle's face detector.

    Args:
        video: has at least one frame.
        bundle: a bundle's name or path.
        name: the video's name, for the error message.

    Returns:
        (x1, y1, x2, y2) in pixels.

    Raises:
        BundleError: the bundle does not exist, or it cannot be run.
        InputError: no face was found.
    """
    hint = "give --face-box x1,y1,x2,y2"
    return largest_face(video[0], load_model(bundle), f"the first frame of {name}", hint)


def largest_face(
    frame: NDArray[np.uint8], model: SonicModel, name: str, hint: str = "give another picture"
) -> Box:
    """Find the largest face in a frame with a model's face detector.

    Args:
        frame: uint8 (height, width, 3).
        model: the loaded bundle.
        name: the frame's name, for the error message.
        hint: what the user can do if no face is found, for the error message.

    Returns:
        (x1, y1, x2, y2) in pixels.

    Raises:
        InputError: no face was found.
    """
    with model.engine.open("face_detector") as detector:
        faces = detect_faces(frame, detector.run, model.constants.face)
    if not faces:
        raise InputError(f"no face was found in {name}; {hint}")
    return faces[0].box


def portrait_of_size(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """Load a portrait and scale it to a video's size, as `sonic.media.portrait.prepare_portrait` does.

    Warns if the aspect ratios differ, as they do if the video was made from a crop (``--expand-ratio``).

    Args:
        path: the picture's file.
        width, height: the video's size in pixels.

    Returns:
        uint8 (height, width, 3).

    Raises:
        InputError: the picture cannot be used.
    """
    picture = load_portrait(path)
    change = width / height / (picture.width / picture.height)
    if not 1 - ASPECT_TOLERANCE < change < 1 / (1 - ASPECT_TOLERANCE):
        warn(
            f"{path} has {picture.width}x{picture.height} pixels and the video {width}x{height}; if the "
            "video was made from a crop, give that crop"
        )
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture)
