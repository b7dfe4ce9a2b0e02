"""Reads a TorchScript archive and writes what it computes as a program of tensor operations.

    run_isolated("sonic_convert.modules.torchscript_reader", [archive], folder)

Runs in a child process only (:mod:`sonic_convert.checkpoint.isolation`), as loading an archive compiles its
code, and running it may take any time and memory. The archive's graph is evaluated node by node for one
picture: what depends on the picture or the grids becomes a call of the program, everything else (branches,
loops, constants) is decided. Sizes stay what they are, functions of the picture's size. The program is then
compared with the archive at other sizes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sonic_convert.modules.tensor_program import TensorProgram
from sonic_convert.modules.torchscript_follower import follow
from sonic_convert.modules.torchscript_values import RefusedError, last_line

REFUSED = "refused.json"
#: Height and width of the picture that is followed, then of those that are compared.
FOLLOWED = (96, 160)
COMPARED = ((96, 160), (160, 64), (416, 448))
STRIDES_PIXELS = (8, 16, 32)
_TOLERANCE = 1e-4


def main(arguments: Sequence[str]) -> None:
    """Read the archive `arguments[0]`; write the program, or why there is none, to the current folder."""
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            program = read_archive(Path(arguments[0]))
        program.save(Path())
    except RefusedError as error:
        Path(REFUSED).write_text(json.dumps({"reason": str(error)[:500]}))


def read_archive(path: Path) -> TensorProgram:
    """The program of a face detector's archive.

    Raises:
        RefusedError: it is not one, or does what a program cannot.
    """
    try:
        archive = torch.jit.load(str(path), map_location="cpu").eval()
        graph = archive.inlined_graph
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        raise RefusedError(
            f"is not a TorchScript archive that torch.jit.load can open ({last_line(error)})"
        ) from error
    program = follow(archive, graph, _inputs(*FOLLOWED))
    for height, width in COMPARED:
        image, *grids = inputs = _inputs(height, width)
        try:
            with torch.jit.optimized_execution(False):  # optimizing for a size takes longer than one run
                expected = archive(image, list(grids))
        except (RuntimeError, MemoryError) as error:
            raise RefusedError(
                f"cannot be run on a picture of {width} x {height} ({last_line(error)})"
            ) from error
        found = _run(program, inputs)
        if not isinstance(expected, Tensor) or found.shape != expected.shape or not _close(found, expected):
            raise RefusedError(
                f"gives other values for a picture of {width} x {height} than its operations do one by one; "
                "it should do the same for every picture"
            )
        if expected.ndim != 3 or expected.shape[0] != 1 or expected.shape[2] != 16:
            raise RefusedError(
                f"gives {tuple(expected.shape)} for a picture; it should give (1, boxes, 16), as "
                "YOLOv5-face with five landmarks does"
            )
    return program


def _inputs(height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height * width)
    grids = []
    for stride in STRIDES_PIXELS:
        rows, columns = torch.arange(height // stride), torch.arange(width // stride)
        y, x = torch.meshgrid(rows.float(), columns.float(), indexing="ij")
        grids.append(torch.stack([x, y], dim=-1)[None, None])
    return [torch.rand(1, 3, height, width, generator=generator), *grids]


def _run(program: TensorProgram, inputs: Sequence[Tensor]) -> Tensor:
    try:
        return program(*inputs)
    except RuntimeError as error:
        size = f"{inputs[0].shape[3]} x {inputs[0].shape[2]}"
        raise RefusedError(
            f"decides by sizes what it computes: another for {size} ({last_line(error)})"
        ) from error


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= _TOLERANCE * expected.norm())
