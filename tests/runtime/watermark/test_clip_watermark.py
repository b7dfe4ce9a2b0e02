"""Which watermark a clip gets, from its options and inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sonic.bundle.store import Bundle, find_bundle, open_bundle, sha256_of
from sonic.errors import InputError
from sonic.options import GenerationOptions
from sonic.resume import clip_watermark, identities
from sonic.watermark.payload import Watermark, hour_of


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(find_bundle("sonic-tiny"), check_digests=False)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    for name in ("image", "audio"):
        (tmp_path / name).write_text(name)
    return {name: tmp_path / name for name in ("image", "audio")}


def test_it_names_the_bundle_and_the_same_clip_alike(bundle: Bundle, sources: dict[str, Path]) -> None:
    options = GenerationOptions(seed=1)
    first = clip_watermark(bundle, identities(sources), options, None)
    assert first == clip_watermark(bundle, identities(sources), options, None)
    assert f"{first.bundle:05x}" == sha256_of(bundle.directory / "manifest.json")[:5]
    assert first.time is None


def test_inputs_and_options_make_another_job(bundle: Bundle, sources: dict[str, Path]) -> None:
    options = GenerationOptions(seed=1)
    jobs = {clip_watermark(bundle, identities(sources), options, None).job}
    jobs.add(clip_watermark(bundle, identities(sources), replace(options, seed=2), None).job)
    sources["image"].write_text("another")
    jobs.add(clip_watermark(bundle, identities(sources), options, None).job)
    assert len(jobs) == 3


def test_time_and_job_are_those_given(bundle: Bundle, sources: dict[str, Path]) -> None:
    options = GenerationOptions(watermark_time="2026-11-27T20:30Z", watermark_job=7)
    watermark = clip_watermark(bundle, identities(sources), options, None)
    assert watermark == Watermark(watermark.bundle, hour_of("2026-11-27T20:00Z"), 7)
    unnumbered = clip_watermark(bundle, identities(sources), replace(options, watermark_job=None), None)
    timeless = clip_watermark(bundle, identities(sources), GenerationOptions(), None)
    assert unnumbered.job == timeless.job  # the digest is of what the video shows


def test_it_can_be_left_out(bundle: Bundle, sources: dict[str, Path]) -> None:
    assert clip_watermark(bundle, identities(sources), GenerationOptions(watermark=False), None) is None


def test_values_that_cannot_be_used_are_one_sentence() -> None:
    with pytest.raises(InputError, match="watermark_time is 'soon', but should be 'now' or a date"):
        GenerationOptions(watermark_time="soon")
    with pytest.raises(InputError, match="watermark_job is 1048576, but should be a whole number from 0 to"):
        GenerationOptions(watermark_job=2**20)
