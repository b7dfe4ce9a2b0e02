"""The built-in examples of the calibration: drawn people, and voices that training knows.

    python -m sonic_training.examples calibration/sonic_calibration/examples

Held-out voices and people stay unseen, so that a precision can be judged on them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import av
import click
import numpy as np
from PIL import Image

from sonic.cli.errors import user_errors
from sonic_convert.drawing.face import Pose
from sonic_training.actors import draw_poses, random_framing, random_look
from sonic_training.speech import SAMPLE_RATE_HZ, Corpus, build_corpus

_SEED = 910_000  # training and the evaluation draw from others
_SIDE_PIXELS = 128
_SECONDS = 3.0
_UTTERANCES = 60


def write_examples(folder: Path, count: int = 6) -> None:
    """Write `count` portraits (PNG) with 3 s of speech each (FLAC, 16 kHz)."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as speech:
        corpus = Corpus(build_corpus(speech, "train", _UTTERANCES))
        for index in range(count):
            generator = np.random.default_rng([_SEED, index])
            look, framing = random_look(generator), random_framing(generator, _SIDE_PIXELS)
            Image.fromarray(draw_poses(look, [Pose()], framing)[0]).save(folder / f"{index:02d}.png")
            clip = corpus.clip(generator, _SECONDS)
            while clip.voice is None:
                clip = corpus.clip(generator, _SECONDS)
            _write_flac(folder / f"{index:02d}.flac", clip.heard)


def _write_flac(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono")
        values = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write the examples to FOLDER."""
    with user_errors():
        write_examples(folder)


if __name__ == "__main__":
    main()
