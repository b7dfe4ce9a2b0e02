"""The face detector: a TorchScript archive whose grids become separate arguments."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sonic.errors import InputError


class FaceDetector(nn.Module):
    """Takes three separate grids and calls the archive with a list of them.

    The exporter mislabels inputs that are lists. What :meth:`load` returns is exported with dynamic
    height and width (by the TorchScript exporter; `torch.export` cannot see into an archive), if the
    archive was traced, or was scripted without operations whose export needs a known shape.
    """

    def __init__(self, archive: nn.Module) -> None:
        super().__init__()
        self.archive = archive

    @classmethod
    def load(cls, path: Path) -> torch.jit.ScriptModule:
        """Open the TorchScript archive; the wrapper is scripted too, as tracing cannot enter an archive.

        Raises:
            InputError: `path` is not a TorchScript archive.
        """
        try:
            archive = torch.jit.load(str(path), map_location="cpu")
        except (RuntimeError, ValueError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{path}: this is not a TorchScript archive that torch.jit.load can open ({reason}); "
                "copy it again"
            ) from error
        return torch.jit.script(cls(archive.eval()).eval())

    def forward(self, image: Tensor, grid_8: Tensor, grid_16: Tensor, grid_32: Tensor) -> Tensor:
        """(1, 3, H, W) RGB in 0..1 and (1, 1, H / s, W / s, 2) grids -> (1, N, 16)."""
        return self.archive(image, [grid_8, grid_16, grid_32])
