"""The face detector: a TorchScript archive whose grids become separate arguments."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sonic.errors import InputError


class FaceDetector(nn.Module):
    """Calls the archive, which takes a list of grids, with three separate ones.

    The exporter mislabels inputs that are lists. It exports what :meth:`load` returns with free
    height and width (TorchScript exporter; `torch.export` can't see into an archive), if the
    archive was traced, or was scripted without operations whose symbols need a known shape.
    """

    def __init__(self, archive: nn.Module) -> None:
        super().__init__()
        self.archive = archive

    @classmethod
    def load(cls, path: Path) -> torch.jit.ScriptModule:
        """Open the TorchScript archive; the wrapper is scripted too, as a trace can't enter it.

        Raises:
            InputError: `path` is no TorchScript archive.
        """
        try:
            archive = torch.jit.load(str(path), map_location="cpu")
        except (RuntimeError, ValueError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{path}: this is no TorchScript archive that torch.jit.load can open ({reason}); "
                "copy it again"
            ) from error
        return torch.jit.script(cls(archive.eval()).eval())

    def forward(self, image: Tensor, grid_8: Tensor, grid_16: Tensor, grid_32: Tensor) -> Tensor:
        """(1, 3, H, W) RGB in 0..1 and (1, 1, H / s, W / s, 2) grids -> (1, N, 16)."""
        return self.archive(image, [grid_8, grid_16, grid_32])
