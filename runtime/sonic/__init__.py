"""Talking-head video from one portrait and one recording, on a CPU, without PyTorch.

Example:

    import sonic

    model = sonic.load_model("sonic-base")
    video = model.generate(image="portrait.jpg", audio="speech.wav")
    sonic.save_video(video, "output.mp4")
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime 1.29 and later report usage to Microsoft on Linux: a device identifier and a database under
# ~/.cache/Microsoft, and look-ups of host names. It reads this variable when it is imported, so it has to be
# set before that; a user who wants telemetry sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from sonic.errors import (
        BundleError,
        GenerationCancelled,
        InputError,
        OutputError,
        SonicError,
        SonicWarning,
    )
    from sonic.media.video import Video, VideoStream, save_video
    from sonic.model import ClipResult, SonicModel, load_model

__version__ = "0.1.0"  # of all packages in the repository; both pyproject.toml files read this line

__all__ = [
    "BundleError",
    "ClipResult",
    "GenerationCancelled",
    "InputError",
    "OutputError",
    "SonicError",
    "SonicModel",
    "SonicWarning",
    "Video",
    "VideoStream",
    "load_model",
    "save_video",
]
_MODULES = {
    **dict.fromkeys(("Video", "VideoStream", "save_video"), "sonic.media.video"),
    **dict.fromkeys(("ClipResult", "SonicModel", "load_model"), "sonic.model"),
}


def __getattr__(name: str) -> Any:
    # Imported when they are first used: a command's first moment is then its own (sonic.cli.entry).
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES.get(name, "sonic.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
