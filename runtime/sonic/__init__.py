"""Talking-head video from one portrait and one recording, on a CPU, without PyTorch.

import sonic

model = sonic.load_model("sonic-base")
video = model.generate(image="portrait.jpg", audio="speech.wav")
sonic.save_video(video, "output.mp4")
"""

from sonic.errors import BundleError, InputError, OutputError, SonicError, SonicWarning
from sonic.media.video import Video, VideoStream, save_video
from sonic.model import ClipResult, SonicModel, load_model

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "ClipResult",
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
