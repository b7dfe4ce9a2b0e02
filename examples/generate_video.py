"""A portrait and a recording become an MP4, with progress; Ctrl-C or a time limit cancels it.

    python examples/generate_video.py portrait.jpg speech.wav video.mp4 --steps 10 --time-limit 600

The frames are encoded while they are decoded, so those of a long clip are never in memory together.
Exit codes: 0 when the video is written, 1 when it was cancelled, 2 for an input that cannot be used.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sonic


class PrintedProgress:
    """Prints every tenth of a stage; a service would store the numbers, a window would draw them."""

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        """Enter a stage of `total` steps; what is yielded is called after each."""

        def advance() -> None:
            nonlocal done
            done += 1
            if done * 10 // total > (done - 1) * 10 // total:
                print(f"{name}: {100 * done // total} %", flush=True)

        yield advance


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate a talking-head video.")
    parser.add_argument("portrait")
    parser.add_argument("speech")
    parser.add_argument("output", help="an MP4 file")
    parser.add_argument("--bundle", default="sonic-tiny", help="a bundle's name or path (%(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps (the bundle's)")
    parser.add_argument("--seed", type=int, help="of the initial noise (the bundle's)")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="cancel after this time")
    arguments = parser.parse_args()

    # Any thread may set the event; the generation then ends within one call of the UNet.
    cancel = threading.Event()
    signal.signal(signal.SIGINT, lambda number, frame: cancel.set())
    if arguments.time_limit is not None:
        timer = threading.Timer(arguments.time_limit, cancel.set)
        timer.daemon = True
        timer.start()

    try:
        model = sonic.load_model(arguments.bundle)
        with model.stream(
            image=arguments.portrait,
            audio=arguments.speech,
            inference_steps=arguments.steps,
            seed=arguments.seed,
            progress=PrintedProgress(),
            cancel=cancel,
        ) as video:
            sonic.save_video(video, arguments.output)
    except sonic.GenerationCancelled:
        print("cancelled; no video was written", file=sys.stderr)
        return 1
    except sonic.SonicError as error:  # one sentence that says what would be right
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.output}: {video.shape[0]} frames of {video.shape[2]}x{video.shape[1]} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
