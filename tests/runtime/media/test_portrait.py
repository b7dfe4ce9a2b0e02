"""Reading pictures, and the arrays made of them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sonic.bundle.constants import PortraitConstants
from sonic.errors import InputError
from sonic.media.portrait import crop_box, load_portrait, output_size, prepare_portrait, resize_mask

CONSTANTS = PortraitConstants()


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Coloured gradients: every place looks different."""
    y, x = np.mgrid[:height, :width]
    planes = (255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), (x + y) % 256)
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_pixels_are_kept(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    path = tmp_path / "face.img"  # the suffix does not matter
    path.write_bytes(encoded(picture(50, 40), kind, **options))
    np.testing.assert_array_equal(np.asarray(load_portrait(path)), np.asarray(picture(50, 40)))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG")],
)
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str, kind: str) -> None:
    data = encoded(picture(50, 40, mode), kind)
    (tmp_path / "face.img").write_bytes(data)
    image = load_portrait(tmp_path / "face.img")
    assert (image.mode, image.size) == ("RGB", (50, 40))
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_deep_grey_is_scaled(tmp_path: Path) -> None:
    grey = np.linspace(0, 65_535, 50 * 40).astype(np.uint16).reshape(40, 50)
    (tmp_path / "deep.png").write_bytes(encoded(Image.fromarray(grey), "PNG"))
    pixels = np.asarray(load_portrait(tmp_path / "deep.png"))
    np.testing.assert_array_equal(pixels[..., 0], grey >> 8)


@pytest.mark.parametrize(("orientation", "transposed"), [(1, False), (3, False), (6, True)])
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int, transposed: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "photo.png").write_bytes(encoded(picture(60, 40), "PNG", exif=exif))
    image = load_portrait(tmp_path / "photo.png")
    assert image.size == ((40, 60) if transposed else (60, 40))
    turns = {1: 0, 3: 2, 6: 3}[orientation]  # quarter turns, anticlockwise
    np.testing.assert_array_equal(np.asarray(image), np.rot90(np.asarray(picture(60, 40)), turns))


@pytest.mark.filterwarnings("error")
def test_odd_exif_data_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "odd.jpg").write_bytes(encoded(picture(60, 40), "JPEG", exif=b"Exif\0\0MM\0*odd"))
    assert load_portrait(tmp_path / "odd.jpg").size == (60, 40)


def bad_files(folder: Path) -> dict[str, str]:
    """Names of unusable files and what is said about them."""
    png, jpeg = encoded(picture(90, 80), "PNG"), encoded(picture(90, 80), "JPEG")
    contents = {
        "empty.png": (b"", "is empty"),
        "text.png": (b"no picture", "not a picture"),
        "noise.jpg": (np.random.default_rng(0).bytes(5000), "not a picture"),
        "drawing.eps": (encoded(picture(90, 80), "EPS"), "a PostScript document, which is not read"),
        "cut.png": (png[: len(png) // 2], "is damaged"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "is damaged"),
        "scratched.png": (png[:80] + bytes(50) + png[130:], "is damaged"),
        "small.png": (encoded(picture(31, 60), "PNG"), "31x60.*at least 32"),
        "long.png": (encoded(picture(289, 36), "PNG"), "289x36.*8 times"),
        "large.png": (encoded(Image.new("1", (9000, 8000)), "PNG"), "9000x8000.*64 megapixels"),
        "larger.png": (encoded(Image.new("1", (12_000, 8000)), "PNG"), "64 megapixels"),
        "bomb.png": (encoded(Image.new("1", (20_000, 10_000)), "PNG"), "64 megapixels"),
        "float.tiff": (encoded(Image.new("F", (90, 80)), "TIFF"), "a TIFF picture, which is not read"),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    return {name: text for name, (_, text) in contents.items()} | {
        "missing.png": "does not exist",
        "folder.png": "is a folder",
        "pipe.png": "not a regular file",
    }


@pytest.mark.filterwarnings("error")
def test_unusable_files_are_named(tmp_path: Path) -> None:
    for name, text in bad_files(tmp_path).items():
        with pytest.raises(InputError, match=text) as caught:
            load_portrait(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_size_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large.png").write_bytes(encoded(Image.new("1", (9000, 8000)), "PNG"))
    monkeypatch.setenv("SONIC_SANDBOX", "0")  # in this process, where it can be observed

    def refuse(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    with pytest.raises(InputError, match="megapixels"):
        load_portrait(tmp_path / "large.png")


@pytest.mark.parametrize(
    ("box", "ratio", "expected"),
    [
        ((40, 40, 60, 60), 0.5, (30, 30, 70, 70)),  # inside: grows on each side
        ((40, 40, 60, 60), 0.0, (40, 40, 60, 60)),
        ((0, 40, 20, 60), 0.5, (0, 35, 30, 65)),  # cut at the left: the height shrinks to match
        ((80, 30, 120, 90), 1.0, (50, 0, 150, 100)),  # taller than the picture
        ((10, 40, 50, 60), 0.5, (10, 30, 50, 70)),  # a wide box, its centre kept
        ((0, 40, 50, 60), 0.5, (5, 30, 45, 70)),  # moved towards the face, which is at 25
    ],
)
def test_crop_boxes(
    box: tuple[float, float, float, float], ratio: float, expected: tuple[int, int, int, int]
) -> None:
    assert crop_box(box, ratio, 200, 100) == expected


@given(
    size=st.tuples(st.integers(32, 3000), st.integers(32, 3000)),
    corners=st.lists(st.floats(-0.1, 1.1), min_size=4, max_size=4, unique=True),
    ratio=st.floats(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_a_crop_box_is_a_square_in_the_picture(
    size: tuple[int, int], corners: list[float], ratio: float
) -> None:
    width, height = size
    (x1, x2), (y1, y2) = sorted(corners[:2]), sorted(corners[2:])
    if x1 >= 1 or x2 <= 0 or y1 >= 1 or y2 <= 0:
        return
    face = (x1 * width, y1 * height, x2 * width, y2 * height)
    if not (face[0] < face[2] and face[1] < face[3]):
        return
    left, top, right, bottom = crop_box(face, ratio, width, height)
    assert 0 <= left <= right <= width
    assert 0 <= top <= bottom <= height
    assert abs((right - left) - (bottom - top)) <= 1


@pytest.mark.parametrize("ratio", [-0.1, float("nan"), float("inf")])
def test_a_useless_expand_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match="0 or more"):
        crop_box((10, 10, 20, 20), ratio, 100, 100)


USELESS_BOXES = [
    (20, 10, 10, 20),
    (10, 10, 20, 10),
    (-20, 10, 0, 20),
    (100, 10, 120, 20),
    (10, 10, float("nan"), 20),
]


@pytest.mark.parametrize("box", USELESS_BOXES)
def test_useless_boxes_are_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="face box.*100x100"):
        crop_box(box, 0.5, 100, 100)
    with pytest.raises(InputError, match="face box.*100x100"):
        prepare_portrait(picture(100, 100), box, 64, CONSTANTS)


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((512, 512), 512, (512, 512)),
        ((1920, 1080), 512, (896, 512)),
        ((300, 400), 256, (256, 320)),  # 341.3 is nearer to 320
        ((400, 500), 256, (256, 320)),
        ((64, 96), 64, (64, 128)),  # 1.5 goes to the even 2
        ((64, 160), 64, (64, 128)),  # and 2.5 too
    ],
)
def test_output_sizes(size: tuple[int, int], resolution: int, expected: tuple[int, int]) -> None:
    assert output_size(*size, resolution, 64) == expected


@pytest.mark.parametrize("resolution", [0, 20, -512])
def test_a_tiny_resolution_is_refused(resolution: int) -> None:
    with pytest.raises(InputError, match="64 or more"):
        output_size(100, 100, resolution, 64)


def test_the_mask_uses_whole_pixels() -> None:
    # centre (61 // 2, 81 // 2) = (30, 40); half sizes (41 * 1.1) // 2 = 22, (61 * 1.1) // 2 = 33
    portrait = prepare_portrait(picture(128, 128), (10, 10, 51, 71), 128, CONSTANTS)
    expected = np.zeros((1, 1, 128, 128), np.float32)
    expected[..., 7:73, 8:52] = 1
    assert portrait.face_mask.dtype == np.float32
    np.testing.assert_array_equal(portrait.face_mask, expected)
    assert portrait.face_box == (10, 10, 51, 71)


def test_mask_and_box_stay_in_the_picture() -> None:
    portrait = prepare_portrait(picture(128, 128), (-9.5, 100, 30, 140), 128, CONSTANTS)
    rows, columns = np.nonzero(portrait.face_mask[0, 0])
    assert (columns.min(), rows.max()) == (0, 127)
    assert portrait.face_box == (0, 100, 30, 128)


def test_a_picture_of_the_right_size_is_not_resized() -> None:
    portrait = prepare_portrait(picture(128, 192), (30, 30, 60, 60), 128, CONSTANTS)
    assert (portrait.width, portrait.height) == (128, 192)
    pixels = np.asarray(picture(128, 192), np.float32).transpose(2, 0, 1)[np.newaxis]
    assert portrait.reference.dtype == np.float32
    np.testing.assert_allclose(portrait.reference, pixels / 127.5 - 1, atol=1e-6)
    assert (portrait.reference.min(), portrait.reference.max()) == (-1, 1)


def test_scaling_to_the_output() -> None:
    image = picture(200, 300)
    portrait = prepare_portrait(image, (50, 75, 150, 225), 128, CONSTANTS)
    assert (portrait.width, portrait.height) == (128, 192)
    assert portrait.reference.shape == (1, 3, 192, 128)
    assert portrait.face_mask.shape == (1, 1, 192, 128)
    assert portrait.face_box == pytest.approx((32, 48, 96, 144))
    expected = np.asarray(image.resize((128, 192), Image.Resampling.LANCZOS), np.float32)
    np.testing.assert_allclose(portrait.reference[0].transpose(1, 2, 0), expected / 127.5 - 1, atol=1e-6)
    assert portrait.face_mask[0, 0, 96, 64] == 1
    assert portrait.face_mask[0, 0, 10, 10] == 0
    soft = (portrait.face_mask > 0) & (portrait.face_mask < 1)
    assert soft.any()  # the mask too is resized with a smooth filter


def test_the_image_encoders_input() -> None:
    image = Image.new("RGB", (100, 130), (255, 0, 51))
    portrait = prepare_portrait(image, (20, 20, 60, 60), 128, CONSTANTS)
    values = portrait.image_encoder_input
    assert (values.shape, values.dtype) == ((1, 3, 224, 224), np.float32)
    expected = (np.array([1, 0, 0.2]) - CONSTANTS.image_encoder_mean) / CONSTANTS.image_encoder_std
    np.testing.assert_allclose(values[0, :, 100, 100], expected, atol=1e-6)
    assert np.ptp(values, axis=(2, 3)).max() == 0


def test_same_as_transformers_image_processor() -> None:
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    image = picture(301, 257)
    portrait = prepare_portrait(image, (20, 20, 60, 60), 128, CONSTANTS)
    small = image.resize((portrait.width, portrait.height), Image.Resampling.LANCZOS)
    small = small.resize((224, 224), Image.Resampling.LANCZOS)
    expected = clip.CLIPImageProcessorPil()(images=small, return_tensors="np").pixel_values
    np.testing.assert_allclose(portrait.image_encoder_input, expected, atol=1e-6)


def test_resizing_a_mask_by_half() -> None:
    # Half-way between two samples the cubic kernel of -0.75 weighs -3, 19, 19, -3 (over 32).
    line = np.array([0, 0, 1, 1, 0, 0, 0, 0], np.float32)
    mask = np.tile(line, (8, 1))[np.newaxis, np.newaxis]
    resized = resize_mask(mask, 4, 4)
    assert (resized.shape, resized.dtype) == ((1, 1, 4, 4), np.float32)
    np.testing.assert_allclose(resized[0, 0, 0] * 32, [-3, 38, -3, 0], atol=1e-5)


@given(
    old=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    new=st.tuples(st.integers(1, 80), st.integers(1, 80)),
)
@settings(max_examples=50, deadline=None)
def test_a_flat_mask_stays_flat(old: tuple[int, int], new: tuple[int, int]) -> None:
    resized = resize_mask(np.full((1, 1, *old), 0.75, np.float32), *new)
    assert resized.shape == (1, 1, *new)
    np.testing.assert_allclose(resized, 0.75, atol=1e-6)


def test_a_mask_of_the_same_size_is_unchanged() -> None:
    mask = np.random.default_rng(0).uniform(size=(1, 1, 24, 40)).astype(np.float32)
    np.testing.assert_array_equal(resize_mask(mask, 24, 40), mask)


@pytest.mark.parametrize(
    ("old", "new"),
    [((512, 640), (64, 80)), ((512, 640), (8, 10)), ((300, 217), (37, 54)), ((20, 30), (50, 41))],
)
def test_masks_are_resized_as_by_pytorch(old: tuple[int, int], new: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    mask = np.random.default_rng(0).uniform(size=(1, 1, *old)).astype(np.float32)
    mask[..., : old[0] // 2, :] = mask[..., : old[0] // 2, :] > 0.5
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask), size=new, mode="bicubic")
    np.testing.assert_allclose(resize_mask(mask, *new), expected.numpy(), atol=1e-6)
