"""Golden files: small, exact, the same bytes for the same arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sonic.errors import BundleError
from sonic.verification.golden import SAMPLED_VALUES, ExpectedClip, ExpectedOutput, GoldenVectors, read_arrays


@pytest.mark.parametrize("shape", [(), (7,), (3, 256, 512), (1, 1500, 5, 384), (2, 3, 64, 1024)])
def test_large_outputs_are_kept_in_part_and_evenly(shape: tuple[int, ...]) -> None:
    output = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kept = ExpectedOutput.of(output)
    assert kept.shape == shape and len(kept.values) == -(-output.size // kept.stride)
    assert len(kept.values) <= 2 * SAMPLED_VALUES
    assert output.size > SAMPLED_VALUES * 2 or kept.stride == 1
    np.testing.assert_array_equal(kept.values_of(output), kept.values)
    places = np.unravel_index(np.arange(output.size)[:: kept.stride], shape) if shape else ()
    for axis, indices in enumerate(places):  # no channel, row or column is left out
        assert len(np.unique(indices)) == shape[axis]


def test_vectors_survive_their_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    inputs = {"a": generator.normal(size=(2, 3)).astype(np.float32), "b": np.array([4], np.int64)}
    output = generator.normal(size=(4, 100_000)).astype(np.float32)
    vectors = GoldenVectors(inputs, {"c": ExpectedOutput.of(output)})
    for name in ("one.npz", "two.npz"):
        vectors.save(tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    again = GoldenVectors.load(tmp_path / "one.npz")
    assert list(again.inputs) == ["a", "b"]
    for name, array in inputs.items():
        np.testing.assert_array_equal(again.inputs[name], array)
        assert again.inputs[name].dtype == array.dtype
    kept = again.outputs["c"]
    assert (kept.shape, kept.stride) == ((4, 100_000), vectors.outputs["c"].stride)
    np.testing.assert_array_equal(kept.values_of(output), kept.values)


def test_repeated_frames_cost_nothing(tmp_path: Path) -> None:
    frame = np.random.default_rng(2).normal(size=(1, 40_000)).astype(np.float32)
    GoldenVectors({"frames": np.repeat(frame, 25, axis=0)}, {}).save(tmp_path / "v.npz")
    assert (tmp_path / "v.npz").stat().st_size < 1.2 * frame.nbytes


def test_clips_survive_their_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    clip = ExpectedClip(
        generator.normal(size=(2, 4, 8, 8)).astype(np.float32),
        generator.integers(0, 256, (3, 64, 64, 3), np.uint8),
    )
    clip.save(tmp_path / "clip.npz")
    again = ExpectedClip.load(tmp_path / "clip.npz")
    np.testing.assert_array_equal(again.noise, clip.noise)
    np.testing.assert_array_equal(again.frames, clip.frames)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", noise=np.array([{}], dtype=object))
    np.savez(tmp_path / "clip.npz", noise=np.zeros(3))
    for name in ("none.npz", "one.npy", "objects.npz"):
        with pytest.raises(BundleError, match=f"{name} cannot be read as golden vectors"):
            read_arrays(tmp_path / name)
    with pytest.raises(BundleError, match=r"clip.npz holds no 'frames'"):
        ExpectedClip.load(tmp_path / "clip.npz")
