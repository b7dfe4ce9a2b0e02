"""What a picture becomes: upright 8-bit sRGB without transparency and without metadata."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from sonic.errors import InputError, SonicWarning
from sonic.media.portrait import load_portrait
from sonic.options import IntakeLimits
from sonic.sandbox.picture_formats import other_format, picture_format
from sonic_convert.drawing.demo_portrait import draw_portrait

HEIC = Path(__file__).with_name("portrait.heic")  # the drawn portrait below, from libheif's encoder


def gradient(width: int = 64, height: int = 48) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    planes = (255 * x / (width - 1), 255 * y / (height - 1), (x + y) % 256)
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(load_portrait(path)).astype(int)


@pytest.mark.filterwarnings("error")
def test_a_photograph_of_a_phone() -> None:
    assert picture_format(HEIC.read_bytes()[:64]) == "HEIF"
    expected = np.asarray(draw_portrait(3).resize((144, 160))).astype(int)
    assert pixels(HEIC).shape == expected.shape
    assert np.abs(pixels(HEIC) - expected).mean() < 3


@pytest.mark.filterwarnings("error")
def test_avif_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.avif", gradient(), quality=95)
    assert np.abs(pixels(path) - np.asarray(gradient()).astype(int)).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_areas_become_white(tmp_path: Path, mode: str) -> None:
    """And what is hidden under them does not show."""
    hidden = gradient().convert("RGBA")
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[:, :20], alpha[:, 20:30] = 0, 128
    hidden.putalpha(Image.fromarray(alpha))
    image = hidden.quantize(200) if mode == "P" else hidden.convert(mode)
    with pytest.warns(SonicWarning, match="a.png has transparent areas, which become white"):
        seen = pixels(saved(tmp_path / "a.png", image))
    assert (seen[:, :20] == 255).all()
    if mode == "RGBA":
        original = np.asarray(gradient()).astype(int)
        np.testing.assert_array_equal(seen[:, 30:], original[:, 30:])
        np.testing.assert_allclose(seen[:, 20:30], (original[:, 20:30] * 128 + 255 * 127) / 255, atol=1)


@pytest.mark.filterwarnings("error")
def test_an_opaque_channel_changes_nothing(tmp_path: Path) -> None:
    seen = pixels(saved(tmp_path / "a.png", gradient().convert("RGBA")))
    np.testing.assert_array_equal(seen, np.asarray(gradient()))


def test_a_transparent_colour(tmp_path: Path) -> None:
    image = gradient().convert("L")
    with pytest.warns(SonicWarning, match="transparent"):
        seen = pixels(saved(tmp_path / "a.png", image, transparency=0))
    assert (seen[np.asarray(image) == 0] == 255).all()


def wide_profile() -> bytes:
    """sRGB with the red and the green channel exchanged: what a conversion does can be told."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    tags = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    for name, other in ((b"rXYZ", b"gXYZ"), (b"gXYZ", b"rXYZ")):
        place = tags[name]
        data[place : place + 4] = other
    place = data.index(b"s\0R\0G\0B")
    data[place : place + 8] = b"t\0E\0S\0T\0"[:8]
    return bytes(data)


@pytest.mark.filterwarnings("error")
def test_colours_are_converted_from_the_profile(tmp_path: Path) -> None:
    seen = pixels(saved(tmp_path / "a.png", gradient(), icc_profile=wide_profile()))
    expected = np.asarray(gradient()).astype(int)[..., [1, 0, 2]]
    assert np.abs(seen - expected).max() <= 2


@pytest.mark.filterwarnings("error")
def test_an_srgb_profile_changes_no_pixel(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    seen = pixels(saved(tmp_path / "a.png", gradient(), icc_profile=profile))
    np.testing.assert_array_equal(seen, np.asarray(gradient()))


@pytest.mark.parametrize("profile", [b"no profile", wide_profile()[:200], bytes(5000)])
def test_a_broken_profile_is_ignored(tmp_path: Path, profile: bytes) -> None:
    with pytest.warns(SonicWarning, match="a.png has a colour profile that cannot be used"):
        seen = pixels(saved(tmp_path / "a.png", gradient(), icc_profile=profile))
    np.testing.assert_array_equal(seen, np.asarray(gradient()))


def test_a_profile_of_other_colours_is_ignored(tmp_path: Path) -> None:
    with pytest.warns(SonicWarning, match="colour profile"):
        pixels(saved(tmp_path / "a.png", gradient().convert("L"), icc_profile=wide_profile()))


@pytest.mark.parametrize("kind", ["png", "webp", "avif"])
def test_of_an_animation_the_first_picture_is_used(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    gradient().save(path, save_all=True, append_images=[Image.new("RGB", (64, 48))], **options)
    with pytest.warns(SonicWarning, match="holds several pictures; the first one is used"):
        seen = pixels(path)
    assert np.abs(seen - np.asarray(gradient()).astype(int)).mean() < 3


def test_metadata_are_dropped(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    path = saved(tmp_path / "a.jpg", gradient(), exif=exif, comment=b"secret", quality=95)
    image = load_portrait(path)
    assert not image.info and not image.getexif()


def test_what_follows_a_picture_is_not_looked_at(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", gradient())
    path.write_bytes(path.read_bytes() + b"PK\x03\x04<html>" * 1000)
    np.testing.assert_array_equal(pixels(path), np.asarray(gradient()))


def test_limits_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", gradient(1500, 1000))
    with pytest.raises(InputError, match="1500x1000 pixels; give a picture of at most 1 megapixels"):
        load_portrait(path, IntakeLimits(picture_megapixels=1))
    monkeypatch.setenv("SONIC_PICTURE_MEGAPIXELS", "1")
    with pytest.raises(InputError, match="at most 1 megapixels"):
        load_portrait(path)
    assert load_portrait(path, IntakeLimits()).size == (1500, 1000)
    path.write_bytes(path.read_bytes() + bytes(1_000_000))
    with pytest.raises(InputError, match="at most 1 MB"):
        load_portrait(path, IntakeLimits(picture_megabytes=1))


def test_the_memory_of_decoding_is_limited(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (6000, 6000)), compress_level=1)
    with pytest.raises(InputError, match="a.png takes more than 50 MB of memory"):
        load_portrait(path, IntakeLimits(decode_memory_megabytes=50))


@pytest.mark.parametrize("scans", [10, 11])
def test_scans_of_a_jpeg_are_counted(tmp_path: Path, scans: int) -> None:
    """Pillow's progressive JPEG has 10, of a thumbnail in the metadata none count."""
    file = io.BytesIO()
    gradient().save(file, "JPEG", progressive=True)
    thumbnail = Image.Exif()
    thumbnail[0x010E] = (b"\xff\xda\0\2" * 40).decode("latin-1")
    gradient().save(tmp_path / "a.jpg", progressive=True, exif=thumbnail)
    data = (tmp_path / "a.jpg").read_bytes()
    last = data.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:-2] + data[last:-2] * (scans - 10) + data[-2:])
    limits = IntakeLimits(picture_scans=10)
    if scans == 10:
        assert load_portrait(tmp_path / "a.jpg", limits).size == (64, 48)
    else:
        with pytest.raises(InputError, match="more than 10 scans"):
            load_portrait(tmp_path / "a.jpg", limits)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"GIF89a", "a GIF picture"),
        (b"II*\0", "a TIFF picture"),
        (b"\xef\xbb\xbf\n <SVG>", "an SVG drawing"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "a video or sound"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        (b"something else", ""),
    ],
)
def test_other_formats_are_named(start: bytes, name: str) -> None:
    assert picture_format(start) is None
    assert other_format(start) == name
