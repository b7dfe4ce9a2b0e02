"""Several recordings for one portrait, denoised together; what became of each is printed.

    python examples/batch_of_clips.py portrait.jpg hello.wav goodbye.wav --output-folder videos --steps 10

Every video has the bytes that it would have alone, and a clip that cannot be generated does not stop the
others. 'sonic batch' does the same for a file of jobs, with a report, and resumes what was interrupted.
Exit codes: 0 when all are written, 1 when one is not, 2 for a bundle or a folder that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import sonic


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate a video for every recording.")
    parser.add_argument("portrait")
    parser.add_argument("speech", nargs="+", type=Path)
    parser.add_argument("--output-folder", type=Path, default=Path("videos"))
    parser.add_argument("--bundle", default="sonic-tiny", help="a bundle's name or path (%(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps (the bundle's)")
    parser.add_argument("--together", type=int, default=4, help="clips denoised together (%(default)s)")
    arguments = parser.parse_args()

    clips = [
        {"image": arguments.portrait, "audio": speech, "inference_steps": arguments.steps, "seed": seed}
        for seed, speech in enumerate(arguments.speech)
    ]
    failed = 0
    try:
        arguments.output_folder.mkdir(parents=True, exist_ok=True)
        model = sonic.load_model(arguments.bundle)
        # Results come in the order of the clips, while later ones are computed.
        for result in model.generate_many(clips, together=arguments.together):
            speech = arguments.speech[result.index]
            if result.video is None:
                failed += 1
                print(f"{speech}: failed: {result.error}", flush=True)
                continue
            output = arguments.output_folder / f"{result.index:02d}-{speech.stem}.mp4"
            sonic.save_video(result.video, output)
            print(f"{speech}: {output}, {result.video.duration_seconds:.2f} s", flush=True)
    except (sonic.SonicError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
