"""The shapes that submodels are compiled for.

The sizes of all axes are constants of a compiled program: loops have fixed bounds, memory is planned once,
and the kernel library's functions are configured once. A bundle therefore has a program for every requested
size of picture; the other axes take few values, as a clip is generated in windows of constant length.
"""

from __future__ import annotations

from dataclasses import dataclass

from sonic.bundle.manifest import SubmodelInfo
from sonic.errors import InputError
from sonic_convert.export.submodels import SUBMODELS, Programs, Sizes


@dataclass(frozen=True)
class Picture:
    """Height and width of a video in pixels."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Picture:
        """From "WIDTHxHEIGHT".

        Raises:
            InputError: the text has another form.
        """
        width, _, height = text.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise InputError(f"the size '{text}' should be WIDTHxHEIGHT in pixels, such as 512x512")
        return cls(int(height), int(width))


COMPILED: dict[str, Programs] = {
    submodel.name: submodel.programs for submodel in SUBMODELS if submodel.programs is not None
}
"""The programs of every submodel that is compiled; the others stay with ONNX Runtime."""


def shapes_of(submodel: SubmodelInfo, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes of a submodel's inputs, by name, for given sizes of its dynamic axes."""
    return {
        tensor.name: tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)
        for tensor in submodel.inputs
    }
