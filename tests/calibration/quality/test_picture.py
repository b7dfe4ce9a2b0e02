"""Image quality metrics on drawn faces with known mouth opening, motion and brightness."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_faces import BOX, HEIGHT, WIDTH, face
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter, shift

from sonic.storage.spool import ArraySpool
from sonic.verification.compare import PSNR_OF_EQUAL_DB
from sonic_calibration.quality.identity import identity
from sonic_calibration.quality.picture import compare_videos, flicker, gradient_distance, sharpness


def test_a_strobe_at_borders_is_found() -> None:
    def film(steps: list[float]) -> list[np.ndarray]:
        return [face(0.5, light=light) for light in steps]

    rng = np.random.default_rng(0)
    steps = 0.9 + 0.005 * rng.random(40)
    calm = flicker(film(list(steps)), BOX, [10, 20, 30])
    assert calm.border_ratio == pytest.approx(1, abs=0.5)
    for first in (10, 20, 30):
        steps[first:] -= 0.08
    jumpy = flicker(film(list(steps)), BOX, [10, 20, 30])
    assert jumpy.border_ratio is not None and jumpy.border_ratio > 4
    assert flicker(film(list(steps)), BOX, [5, 15, 25]).border_ratio < 1.5  # type: ignore[operator]
    assert jumpy.strobe > calm.strobe


def test_steady_changes_do_not_flicker() -> None:
    still = flicker([face(t % 2) for t in range(6)], BOX, [3])
    assert still.difference == 0  # the mouth is excluded
    silent = flicker([face()] * 6, BOX, [3])
    assert (silent.difference, silent.strobe, silent.border_ratio) == (0, 0, pytest.approx(1))
    ramp = flicker([np.full((HEIGHT, WIDTH, 3), 40 + 3 * t, np.uint8) for t in range(20)], BOX)
    assert ramp.difference == pytest.approx(3, rel=1e-4)
    assert ramp.strobe == pytest.approx(0, abs=1e-3)
    assert ramp.border_ratio is None
    assert flicker([face()], BOX).strobe == 0


def test_blur_lowers_the_sharpness() -> None:
    portrait = face()
    blurred = gaussian_filter(portrait, (1.5, 1.5, 0))
    assert sharpness([portrait] * 2, portrait).ratio == pytest.approx(1)
    soft = sharpness([portrait, blurred], portrait)
    assert soft.ratio is not None and soft.ratio < 0.8
    assert soft.worst_variance < soft.variance
    assert sharpness([portrait]).ratio is None
    flat = np.full_like(portrait, 90)
    assert sharpness([flat], flat).ratio == pytest.approx(1)


def test_identity_sees_the_face_and_not_its_motion() -> None:
    portrait = face()
    same = identity([portrait, face(1.0)], portrait, BOX)
    assert same.psnr_db == same.aligned_psnr_db == same.picture_psnr_db == PSNR_OF_EQUAL_DB
    assert same.ssim == pytest.approx(1)
    moved = identity([face(0.4, right=1, down=-2)] * 2, portrait, BOX)
    assert moved.aligned_psnr_db > 38 > 30 > moved.psnr_db
    assert moved.aligned_ssim > 0.99 > moved.ssim
    assert moved.motion_pixels == pytest.approx(np.hypot(1, 2), abs=0.05)
    other = identity([portrait, face(skin=(214, 160, 122))], portrait, BOX)
    assert other.aligned_psnr_db < 25
    assert other.worst_frame == 1 and other.worst_aligned_psnr_db < other.aligned_psnr_db


@settings(max_examples=15, deadline=None)
@given(st.floats(-2.5, 2.5), st.floats(-2.5, 2.5))
def test_motion_between_pixels_is_removed(down: float, right: float) -> None:
    portrait = gaussian_filter(face().astype(float), (1, 1, 0))
    moved = shift(portrait, (down, right, 0), order=3, mode="nearest")
    pictures = [np.clip(picture, 0, 255).round().astype(np.uint8) for picture in (portrait, moved)]
    found = identity(pictures[1:], pictures[0], BOX)
    assert found.motion_pixels == pytest.approx(np.hypot(down, right), abs=0.02)
    assert found.aligned_psnr_db > 45
    assert found.aligned_psnr_db >= found.psnr_db


def test_too_large_a_motion_and_flat_faces_raise_no_error() -> None:
    assert identity([face(right=9)], face(), BOX).aligned_psnr_db < 25
    flat = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    found = identity([flat + 10], flat, BOX)
    assert found.psnr_db == pytest.approx(found.aligned_psnr_db)
    assert found.motion_pixels == 0
    assert identity([face()], face(), (-40, -40, 200, 200)).psnr_db == PSNR_OF_EQUAL_DB


def test_compare_videos_finds_the_worst_frame() -> None:
    reference = np.zeros((3, 16, 16, 3), np.uint8)
    frames = reference.copy()
    frames[1] += 10
    spool = ArraySpool((16, 16, 3), np.uint8, memory_limit_bytes=0)
    spool.append(frames)
    difference = compare_videos(spool, reference)
    assert difference.worst_frame == 1
    assert difference.worst_psnr_db == pytest.approx(10 * np.log10(255**2 / 100))
    assert difference.gradient_distance == 0  # it depends on edges, not on levels
    equal = compare_videos(reference, reference)
    assert (equal.psnr_db, equal.ssim, equal.gradient_distance) == (PSNR_OF_EQUAL_DB, 1, 0)


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
        lambda size: st.tuples(*[arrays(np.uint8, (*size, 3))] * 2)
    )
)
def test_the_gradient_distance_is_a_distance(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = pictures
    assert gradient_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert 0 <= gradient_distance(one, other) <= 1
    assert gradient_distance(one, other) == pytest.approx(gradient_distance(other, one), abs=1e-6)


def test_the_gradient_distance_grows_with_blur() -> None:
    portrait = face(0.5)
    distances = [
        gradient_distance(gaussian_filter(portrait, (sigma, sigma, 0)), portrait) for sigma in (0, 1, 2, 4)
    ]
    assert distances[0] == 0
    assert (np.diff(distances) > 0).all()
