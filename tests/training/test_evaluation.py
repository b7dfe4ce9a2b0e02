"""Evaluation on held-out clips: reproducible inputs, complete files, consistent numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sonic
from sonic.media.audio import load_sound
from sonic_calibration.quality.window_borders import window_borders
from sonic_training.evaluation import HELD_OUT_SEED, evaluate, held_out_clips
from sonic_training.sentences import voices

needs_speech = pytest.mark.skipif(
    not (shutil.which("espeak-ng") and shutil.which("flite")),
    reason="speech is synthesized by espeak-ng and flite (apt-get install espeak-ng flite)",
)


@needs_speech
def test_held_out_clips_are_reproducible_and_of_held_out_voices(tmp_path: Path) -> None:
    first, again = held_out_clips(tmp_path / "a", 3), held_out_clips(tmp_path / "b", 3)
    for one, other, seconds in zip(first, again, (2, 5, 8), strict=True):
        assert one.portrait.read_bytes() == other.portrait.read_bytes()
        assert one.speech.read_bytes() == other.speech.read_bytes()
        assert load_sound(one.speech).duration_seconds == pytest.approx(seconds)
        assert Image.open(one.portrait).size == (512, 512)
        assert one.name[3:] in {voice.name for voice in voices("held_out")}
        assert one.name[3:] not in {voice.name for voice in voices("train")}
    assert HELD_OUT_SEED > 100_000  # training uses smaller seeds


def test_borders_are_the_first_frames_of_the_last_steps_windows(model: sonic.SonicModel) -> None:
    # 75 generated frames, three windows; the first step does not shift them, the second by 7.
    assert window_borders(model.constants, 150, 1) == [50, 100]
    assert window_borders(model.constants, 150, 2) == [36, 86, 136]
    assert window_borders(model.constants, 40, 1) == []


@needs_speech
def test_an_evaluation_leaves_videos_sheets_and_numbers(small, tmp_path: Path) -> None:
    results = evaluate(str(small.bundle), clips=1, steps=1, scales=False, out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"inputs", "00.mp4", "00.png", "results.json"}
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["summary"]["clips"] == 1
    assert np.isfinite(results["summary"]["lip_sync_correlation"])
