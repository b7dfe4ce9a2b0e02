"""The shapes that submodels are compiled for.

A compiled program knows the sizes of all its axes: loops have fixed bounds, memory is planned once, and the
kernel library's functions are configured once. A bundle therefore holds a program for every size of picture
that was asked for; the other axes take few values, as a clip is generated in windows of constant length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sonic.bundle.constants import Constants
from sonic.bundle.manifest import SubmodelInfo
from sonic.diffusion.guidance import GUIDANCE_BRANCHES
from sonic.errors import InputError
from sonic_convert.export.submodels import Sizes, picture_sizes, unet_sizes


@dataclass(frozen=True)
class Picture:
    """Height and width of a video in pixels."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Picture:
        """From "WIDTHxHEIGHT".

        Raises:
            InputError: it is none.
        """
        width, _, height = text.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise InputError(f"the size '{text}' should be WIDTHxHEIGHT in pixels, such as 512x512")
        return cls(int(height), int(width))


@dataclass(frozen=True)
class Compiled:
    """How a submodel is compiled.

    Attributes:
        sizes: of its dynamic axes, one entry for every program that one size of picture needs.
        rows: axis whose entries do not know of each other, so that one program does for any number; or "".
    """

    sizes: Callable[[Constants, Picture], list[Sizes]]
    rows: str = ""


_ROWS = 25  # frames that the audio heads see at once: one second of Sonic's own conditioning


def _latent(constants: Constants, picture: Picture) -> tuple[int, int]:
    stride = constants.video.latent_stride_pixels
    return picture.height // stride, picture.width // stride


#: Submodels that are not in the table stay with ONNX Runtime: the face detector, whose input has the
#: proportions of the portrait, and which runs once for a clip.
COMPILED: dict[str, Compiled] = {
    "audio_encoder": Compiled(lambda constants, picture: [{}]),
    "audio2token": Compiled(lambda constants, picture: [{"frames": _ROWS}], "frames"),
    "audio2bucket": Compiled(lambda constants, picture: [{"frames": _ROWS}], "frames"),
    "image_encoder": Compiled(lambda constants, picture: [{}]),
    "vae_encoder": Compiled(lambda constants, picture: [picture_sizes(picture.height, picture.width)]),
    "vae_decoder": Compiled(
        lambda constants, picture: [
            picture_sizes(*_latent(constants, picture), count)
            for count in range(1, constants.video.decode_chunk_frames + 1)
        ]
    ),
    "unet": Compiled(
        lambda constants, picture: [
            unet_sizes(branches, constants.sampler.window_frames, *_latent(constants, picture))
            # All guidance branches in one call, and one by one as in the memory modes 'low' and 'fast'.
            for branches in (GUIDANCE_BRANCHES, 1)
        ],
        "batch",
    ),
    "frame_interpolator": Compiled(lambda constants, picture: [picture_sizes(picture.height, picture.width)]),
}


def shapes_of(submodel: SubmodelInfo, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes of a submodel's inputs for sizes of its axes."""
    return {
        tensor.name: tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)
        for tensor in submodel.inputs
    }
