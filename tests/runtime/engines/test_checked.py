"""Every call of a submodel is compared with the manifest, and every output is finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sonic.bundle.bundle import Bundle
from sonic.bundle.store import PACKAGED_BUNDLES, open_bundle
from sonic.engines.base import Arrays
from sonic.engines.checked import CheckedEngine, NotFinite
from sonic.errors import BundleError, GenerationCancelled


class Fake:
    """A session and an engine that answers with what it is told to."""

    def __init__(self, bundle: Bundle, answer: Any) -> None:
        self.bundle, self.answer = bundle, answer

    def open(self, submodel: str, parallelism: object = None) -> Fake:
        return self

    def run(self, inputs: Mapping[str, np.ndarray], **tags: object) -> Arrays:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *error: object) -> None: ...


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(PACKAGED_BUNDLES / "sonic-tiny", check_digests=False)


IMAGES = {"images": np.zeros((2, 3, 16, 24), np.float32)}
LATENTS = {"latents": np.zeros((2, 4, 2, 3), np.float32)}


def run(bundle: Bundle, answer: Any, inputs: Arrays = LATENTS) -> Arrays:
    with CheckedEngine(Fake(bundle, answer)).open("vae_decoder") as session:  # type: ignore[arg-type]
        return session.run(inputs)


def test_what_fits_passes(bundle: Bundle) -> None:
    assert run(bundle, IMAGES) is IMAGES


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite(bundle: Bundle, value: float) -> None:
    images = IMAGES["images"].copy()
    images[1, 2, 15, 23] = value
    with pytest.raises(NotFinite, match="'vae_decoder' returned values that are not finite in 'images'"):
        run(bundle, {"images": images})


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        ({}, "returns nothing for 'images'"),
        ({"images": np.zeros((2, 3, 16, 24))}, r"returns float64 \(2, 3, 16, 24\)"),
        ({"images": np.zeros((2, 4, 16, 24), np.float32)}, r"returns float32 \(2, 4, 16, 24\)"),
        ({"images": np.zeros((1, 3, 16, 24), np.float32)}, r"returns float32 \(1, 3, 16, 24\)"),
        ({"images": np.zeros((2, 3, 16), np.float32)}, r"returns float32 \(2, 3, 16\)"),
    ],
)
def test_another_networks_outputs(bundle: Bundle, outputs: Arrays, found: str) -> None:
    with pytest.raises(BundleError, match=f"'vae_decoder' {found}.* but the manifest says float32"):
        run(bundle, outputs)


def test_inputs_that_the_bundle_does_not_take(bundle: Bundle) -> None:
    wrong = {"latents": np.zeros((2, 8, 2, 3), np.float32)}
    with pytest.raises(BundleError, match=r"takes float32 \(2, 8, 2, 3\) for 'latents'"):
        run(bundle, IMAGES, wrong)


def test_an_engines_exception_becomes_a_sentence(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"'vae_decoder' cannot be run \(bad \?shape\); ") as caught:
        run(bundle, RuntimeError("bad \x1bshape\nand more"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [GenerationCancelled("cancelled"), KeyboardInterrupt(), SystemExit(143)])
def test_what_is_no_failure_passes(bundle: Bundle, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(bundle, error)


def test_axes_of_one_name_have_one_size(bundle: Bundle) -> None:
    interpolator = replace(bundle.manifest.submodels["frame_interpolator"], name="vae_decoder")
    manifest = replace(bundle.manifest, submodels={**bundle.manifest.submodels, "vae_decoder": interpolator})
    other = Bundle(bundle.directory, manifest)
    frame = np.zeros((1, 3, 8, 8), np.float32)
    assert run(other, {"middle": frame}, {"frame_0": frame, "frame_1": frame})
    with pytest.raises(BundleError, match="takes .* for 'frame_1'"):
        run(other, {"middle": frame}, {"frame_0": frame, "frame_1": np.zeros((1, 3, 8, 16), np.float32)})
