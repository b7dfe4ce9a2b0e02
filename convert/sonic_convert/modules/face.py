"""The face detector: a TorchScript archive, read in a child process, as a PyTorch module."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sonic.bounded import read_json
from sonic.errors import InputError
from sonic_convert.checkpoint.isolation import IsolationError, Limits, run_isolated
from sonic_convert.checkpoint.torchscript import check_archive
from sonic_convert.modules.tensor_program import PROGRAM, TensorProgram

_READER = "sonic_convert.modules.torchscript_reader"
_REFUSED = "refused.json"
_ADVICE = "it should be the file of Sonic's repository; copy it again"


def load_face_detector(path: Path, limits: Limits | None = None) -> TensorProgram:
    """Read YOLOv5-face, or a detector of its interface, from a TorchScript archive, traced or scripted.

    What is returned holds the archive's operations and weights and none of its code. It takes the image
    (1, 3, H, W), RGB in 0..1, and three grids (1, 1, H / s, W / s, 2) as separate arguments, and returns
    (1, N, 16).

    Raises:
        InputError: `path` is not a TorchScript archive, not a face detector's, or takes more time or memory
            than `limits`.
    """
    check_archive(path)
    with tempfile.TemporaryDirectory(prefix="sonic-face-") as scratch:
        folder = Path(scratch)
        try:
            run_isolated(_READER, [str(Path(path).resolve())], folder, limits)
        except IsolationError as error:
            raise InputError(f"{path}: reading this TorchScript archive {error}; {_ADVICE}") from error
        if (folder / _REFUSED).exists():
            refused = read_json(folder / _REFUSED, InputError)
            raise InputError(f"{path}: this TorchScript archive {refused.get('reason')}; {_ADVICE}")
        if not (folder / PROGRAM).exists():
            raise InputError(f"{path}: reading this TorchScript archive gave nothing; {_ADVICE}")
        return TensorProgram.load(folder)
