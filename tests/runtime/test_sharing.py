"""One model for many threads, and generations that are cancelled."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import sonic
from sonic.bundle.constants import GUIDANCE_BRANCHES
from sonic.engines.watched import Call

FAST = {"inference_steps": 2, "min_resolution": 64}


def test_four_threads_get_the_bytes_that_they_get_alone(model, portrait, short_wav, long_mp3) -> None:
    clips = [
        {"audio": short_wav, "seed": 1},
        {"audio": long_mp3, "duration": 2.2, "seed": 2},
        {"audio": short_wav, "seed": 3, "dynamic_scale": 1.4},
        {"audio": short_wav, "seed": 1, "smooth_motion": True},
    ]
    alone = [np.asarray(model.generate(portrait, **clip, **FAST)) for clip in clips]
    seen: list[list[Call]] = [[] for _ in clips]
    start = threading.Barrier(len(clips))

    def generate(index: int) -> np.ndarray:
        start.wait()
        video = model.generate(portrait, **clips[index], observer=seen[index].append, **FAST)
        return np.asarray(video)

    with ThreadPoolExecutor(len(clips)) as pool:
        together = list(pool.map(generate, range(len(clips))))
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found, expected)
    # Each observer saw its own clip, and nothing of the others.
    for calls in seen:
        frames = sum(len(call.outputs["images"]) for call in calls if call.submodel == "vae_decoder")
        assert sum(call.submodel == "face_detector" for call in calls) == 1
        assert sum(call.submodel == "frame_interpolator" for call in calls) == frames - 1
        windows = -(-frames // 25)
        assert sum(call.submodel == "unet" for call in calls) == 2 * windows * GUIDANCE_BRANCHES


def cancelling(event: threading.Event, submodel: str, count: int, seen: list[str]):
    """An observer that cancels at the n-th call of a submodel."""

    def observe(call: Call) -> None:
        seen.append(call.submodel)
        if seen.count(submodel) == count:
            event.set()

    return observe


@pytest.mark.parametrize(
    ("submodel", "count"), [("face_detector", 1), ("audio2token", 1), ("unet", 3), ("vae_decoder", 1)]
)
def test_cancel_ends_within_one_call_and_leaves_nothing(
    model, portrait, short_wav, tmp_path: Path, submodel: str, count: int
) -> None:
    cancel, seen = threading.Event(), []
    threads = threading.active_count()
    options = {"inference_steps": 5, "min_resolution": 64, "dump": tmp_path / "dump"}
    with pytest.raises(sonic.GenerationCancelled, match="cancelled"):
        model.generate(
            portrait, short_wav, cancel=cancel, observer=cancelling(cancel, submodel, count, seen),
            spool_directory=tmp_path, **options,
        )  # fmt: skip
    assert seen[-1] == submodel and seen.count(submodel) == count
    assert list(tmp_path.iterdir()) == [] and threading.active_count() == threads


def test_a_cancelled_stream_writes_no_file(model, portrait, short_wav, tmp_path: Path) -> None:
    cancel = threading.Event()
    observer = cancelling(cancel, "frame_interpolator", 2, [])
    with (
        pytest.raises(sonic.GenerationCancelled),
        model.stream(portrait, short_wav, cancel=cancel, observer=observer, **FAST) as video,
    ):
        sonic.save_video(video, tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == []


def test_cancelling_one_clip_does_not_touch_another(model, portrait, short_wav) -> None:
    cancel = threading.Event()
    expected = np.asarray(model.generate(portrait, short_wav, **FAST))

    def cancelled() -> str:
        observer = cancelling(cancel, "unet", 1, [])
        with pytest.raises(sonic.GenerationCancelled) as caught:
            model.generate(portrait, short_wav, cancel=cancel, observer=observer, **FAST)
        return str(caught.value)

    with ThreadPoolExecutor(2) as pool:
        ended = pool.submit(cancelled)
        video = pool.submit(model.generate, portrait, short_wav, cancel=threading.Event(), **FAST)
        assert "nothing was written" in ended.result()
        np.testing.assert_array_equal(np.asarray(video.result()), expected)


def test_a_cancelled_batch_reports_every_clip(model, portrait, short_wav, tmp_path: Path) -> None:
    cancel = threading.Event()
    clips = [
        {"image": portrait, "audio": short_wav, "seed": seed, "dump": tmp_path / str(seed), **FAST}
        for seed in range(3)
    ]
    results = []
    for result in model.generate_many(clips, together=1, cancel=cancel):
        results.append(result)
        cancel.set()
    assert results[0].error is None and results[0].video is not None
    assert all(isinstance(result.error, sonic.GenerationCancelled) for result in results[2:])
    assert {path.name for path in tmp_path.iterdir()} <= {"0", "1"} and len(results) == 3
