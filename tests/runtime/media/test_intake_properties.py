"""Whatever is done to a small file, it is read, or an InputError says in a sentence why not."""

from __future__ import annotations

import functools
import io
import tempfile
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from sonic.errors import InputError
from sonic.media.audio import load_sound
from sonic.media.portrait import load_portrait

HEIC = Path(__file__).parents[1] / "sandbox/portrait.heic"


@functools.cache
def pictures() -> list[bytes]:
    """Small pictures of every format, with metadata."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 4)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    found = [HEIC.read_bytes()]
    for kind, options in (
        ("PNG", {"exif": exif, "icc_profile": profile}),
        ("JPEG", {"exif": exif, "icc_profile": profile, "progressive": True}),
        ("WEBP", {"exif": exif}),
        ("AVIF", {"exif": exif}),
        ("PNG", {"save_all": True, "append_images": [Image.new("RGBA", (48, 40))]}),
    ):
        file = io.BytesIO()
        image.convert("RGB" if kind == "JPEG" else "RGBA").save(file, kind, **options)
        found.append(file.getvalue())
    return found


@functools.cache
def sounds() -> list[bytes]:
    """Small sounds of every container."""
    samples = np.random.default_rng(0).normal(scale=0.1, size=(1, 6000)).astype(np.float32)
    found = []
    for container_format, codec in (
        ("wav", "pcm_f32le"), ("wav", "pcm_s24le"), ("mp3", "libmp3lame"), ("flac", "flac"),
        ("ogg", "libopus"), ("ipod", "aac"), ("matroska", "flac"), ("aiff", "pcm_s16be"),
        ("caf", "pcm_s16be"), ("adts", "aac"), ("avi", "pcm_s16le"),
    ):  # fmt: skip
        file = io.BytesIO()
        with av.open(file, "w", format=container_format) as container:
            stream = container.add_stream(codec, rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            converter = av.AudioResampler(stream.format, "mono", 16_000, frame_size=stream.frame_size or None)
            for part in [*converter.resample(frame), *converter.resample(None), None]:
                container.mux(list(stream.encode(part)))
        found.append(file.getvalue())
    return found


@st.composite
def damaged(draw: st.DrawFn, files: Callable[[], list[bytes]]) -> bytes:
    """One of the files with bytes changed, left out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(files())))
    for _ in range(draw(st.integers(1, 6))):
        # Most of what a reader decides on is at the beginning.
        place = draw(st.integers(0, min(len(data), 200)) | st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        action = draw(st.sampled_from(["change", "insert", "remove", "cut", "repeat"]))
        if action == "change":
            data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif action == "insert":
            data[place:place] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0" * 8]))
        elif action == "remove":
            del data[place : place + length]
        elif action == "cut":
            del data[max(place, 1) :]
        else:
            data[place:place] = data[place : place + 100 * length]
    return bytes(data) or b"x"


def outcome(load: Callable[[Path], object], data: bytes) -> object:
    """What is loaded, or the sentence of the InputError; any other exception is a failure."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "file")
        path.write_bytes(data)
        try:
            return load(path)
        except InputError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            return str(error)


@pytest.mark.parametrize("data", [*pictures(), *sounds()])
def test_the_files_themselves_are_read(data: bytes) -> None:
    results = [outcome(load, data) for load in (load_portrait, load_sound)]
    assert any(not isinstance(result, str) for result in results), results


@given(data=damaged(pictures))
@settings(max_examples=25, deadline=None)
def test_damaged_pictures(data: bytes) -> None:
    outcome(load_portrait, data)


@given(data=damaged(sounds))
@settings(max_examples=25, deadline=None)
def test_damaged_sounds(data: bytes) -> None:
    outcome(load_sound, data)
