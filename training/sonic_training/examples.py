"""Makes calibration's built-in examples: drawn people, with speech of voices that training uses.

    python -m sonic_training.examples calibration/sonic_calibration/examples

They contain no held-out voices, so that quantized bundles can be evaluated on those.
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

_SEED = 910_000  # training and evaluation use other seeds
_SIDE_PIXELS = 128
_SECONDS = 3.0
_UTTERANCES = 60


def write_examples(folder: Path, count: int = 6) -> None:
    """Write portraits (PNG) with 3 s of speech each (FLAC, mono, 16 kHz), as ``00.png``, ``00.flac``, ...

    Args:
        folder: created if it does not exist.
        count: number of examples.

    Raises:
        InputError: a speech synthesizer is not installed.
        OSError: the folder cannot be written.
    """
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
    """Write float32 (n,) at 16 kHz as a mono 16-bit FLAC file."""
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
    """Write calibration's built-in examples to FOLDER."""
    with user_errors():
        write_examples(folder)


if __name__ == "__main__":
    main()
