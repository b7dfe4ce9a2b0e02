"""Generates a clip with the published pipeline in PyTorch; a process of its own, which the benchmarks time.

python -m sonic_convert.bench.run_published CHECKPOINT IMAGE SPEECH OUTPUT RESOLUTION STEPS
"""

from __future__ import annotations

import sys
from pathlib import Path

from sonic.cli.errors import user_errors
from sonic.media.video import Video, save_video
from sonic.options import GenerationOptions
from sonic.progress import ConsoleProgress
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.parity.reference import TorchReference


def main(checkpoint: str, image: str, speech: str, output: str, resolution: str, steps: str) -> None:
    """Generate the clip, and encode it as ``sonic generate`` does."""
    options = GenerationOptions(min_resolution=int(resolution), inference_steps=int(steps))
    with user_errors():
        opened = Checkpoint.open(checkpoint)
        result = TorchReference(opened).generate(
            Path(image), Path(speech), options, progress=ConsoleProgress()
        )
        video = opened.constants.video
        save_video(
            Video(result.interpolated, video.frame_rate_hz, result.sound),
            output,
            constant_rate_factor=video.h264_constant_rate_factor,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
