from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from sonic.watermark.detection import FALSE_POSITIVE_RATE, detect
from sonic.watermark.embedding import Embedder
from sonic.watermark.pattern import pattern, pitch_pixels
from sonic.watermark.payload import Watermark

MARK = Watermark(0xABCDE, 60_000, 123_456)


@pytest.fixture(scope="module")
def luma() -> np.ndarray:
    """A photograph, (512, 512), 16 to 235."""
    picture = data.astronaut() @ np.array([0.2126, 0.7152, 0.0722])
    return (16 + picture * 219 / 255).round().astype(np.uint8)


def marked(luma: np.ndarray, watermark: Watermark = MARK) -> np.ndarray:
    copy = luma.copy()
    Embedder(watermark, *luma.shape).apply(copy)
    return copy


@pytest.mark.parametrize("shape", [(512, 512), (576, 1024), (128, 128), (250, 300)])
def test_a_mark_is_found_and_costs_little(luma: np.ndarray, shape: tuple[int, int]) -> None:
    zoomed = ndimage.zoom(luma.astype(float), np.divide(shape, luma.shape), order=1)
    plain = zoomed.clip(16, 235).round().astype(np.uint8)
    found = detect(marked(plain))
    assert found is not None and found.watermark == MARK and not found.mirrored
    assert found.cells == pytest.approx(min(shape) / pitch_pixels(*shape), rel=0.006)
    # A level of luma is 255 / 219 levels of each colour.
    error = np.square((marked(plain).astype(float) - plain) * 255 / 219).mean()
    assert 10 * np.log10(255**2 / error) >= 42


def test_smooth_pictures_are_changed_by_one_level() -> None:
    slope = np.add.outer(np.arange(512), np.arange(512)) // 8 + 60
    change = marked(slope.astype(np.uint8)).astype(int) - slope
    assert set(np.unique(change)) == {-1, 0, 1}
    assert detect(slope + change).watermark == MARK


@pytest.mark.parametrize("level", [0, 16, 17, 128, 234, 235, 255])
def test_marking_stays_from_black_to_white(level: int) -> None:
    flat = np.full((64, 64), level, np.uint8)
    assert 16 <= marked(flat).min() <= marked(flat).max() <= 235


CHANGES = {
    "half size": lambda luma: luma.reshape(256, 2, 256, 2).mean((1, 3)),
    "cropped and enlarged": lambda luma: ndimage.zoom(luma[17:478, 33:494].astype(float), 512 / 461, order=1),
    "half size, cropped": lambda luma: luma.reshape(256, 2, 256, 2).mean((1, 3))[9:239, 15:245],
    "brighter": lambda luma: 0.8 * luma + 40,
    "noisy": lambda luma: luma + np.random.default_rng(0).normal(0, 3, luma.shape),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_still_says_it(luma: np.ndarray, change: str) -> None:
    assert detect(CHANGES[change](marked(luma))).watermark == MARK


def test_a_mirrored_picture_still_says_it(luma: np.ndarray) -> None:
    found = detect(marked(luma)[:, ::-1])
    assert found.watermark == MARK and found.mirrored


def test_pictures_without_a_mark_have_none(luma: np.ndarray) -> None:
    assert detect(luma) is None
    assert detect(np.full((64, 64), 128.0)) is None


def test_the_bound_is_the_one_that_is_promised() -> None:
    assert FALSE_POSITIVE_RATE < 1e-6


def test_the_pattern_never_changes() -> None:
    """Marks that are out there have to stay readable."""
    levels = pattern(MARK.to_number(), 512, 512, 1.5).astype(np.int64)
    rows, columns = np.mgrid[:512, :512]
    assert [int((levels * weight).sum()) for weight in (1, rows, columns)] == PATTERN_SUMS


PATTERN_SUMS = [-3232, -970652, -515668]
