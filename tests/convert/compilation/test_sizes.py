"""Which programs a size of picture needs."""

from __future__ import annotations

import pytest

from sonic.bundle.bundle import Bundle
from sonic.bundle.constants import GUIDANCE_BRANCHES
from sonic.bundle.manifest import SUBMODEL_NAMES, Manifest
from sonic.bundle.store import open_bundle
from sonic.engines.tvm import Program, Specialisation, choose
from sonic.errors import InputError
from sonic_convert.compilation.sizes import COMPILED, Picture, shapes_of


@pytest.fixture(scope="module")
def bundle(small) -> Bundle:
    return open_bundle(small.bundle)


def test_pictures() -> None:
    assert Picture.parse("512x768") == Picture(height=768, width=512)


@pytest.mark.parametrize(
    "text", ["", "512", "512x", "x512", "512x512x3", "-64x64", "64X64", "64 x64", "6.4x64", "1e3x64", "²x64"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match=f"the size '{text}' should be WIDTHxHEIGHT in pixels, such as"):
        Picture.parse(text)


def test_the_face_detector_alone_is_not_compiled() -> None:
    assert set(SUBMODEL_NAMES) - set(COMPILED) == {"face_detector"}


@pytest.mark.parametrize("name", COMPILED)
def test_shapes_have_no_names_left(bundle: Bundle, name: str) -> None:
    constants, info = bundle.manifest.constants, bundle.manifest.submodels[name]
    plan = COMPILED[name].sizes(constants, 128, 192)
    shapes = [shapes_of(info, sizes) for sizes in plan]
    assert len({str(shape) for shape in shapes}) == len(plan) >= 1
    for each in shapes:
        assert list(each) == [tensor.name for tensor in info.inputs]
        assert all(isinstance(size, int) and size > 0 for shape in each.values() for size in shape)


def test_shapes_of_a_picture_that_is_not_square(bundle: Bundle) -> None:
    constants, submodels = bundle.manifest.constants, bundle.manifest.submodels

    def shapes(name: str, tensor: str) -> list[tuple[int, ...]]:
        plan = COMPILED[name].sizes(constants, 128, 192)
        return [shapes_of(submodels[name], sizes)[tensor] for sizes in plan]

    window = constants.sampler.window_frames
    assert shapes("unet", "sample") == [(1, window, 8, 16, 24)]
    assert shapes("unet", "mask_1") == [(1, 1, 8, 12)]
    assert shapes("vae_encoder", "image") == [(1, 3, 128, 192)]
    assert shapes("frame_interpolator", "frame_1") == [(1, 3, 128, 192)]
    counts = range(1, constants.video.decode_chunk_frames + 1)
    assert shapes("vae_decoder", "latents") == [(count, 4, 16, 24) for count in counts]


@pytest.mark.parametrize("name", COMPILED)
def test_a_clip_finds_its_programs(bundle: Bundle, name: str) -> None:
    """Every call of the golden clip has one."""
    manifest, entry = bundle.manifest, COMPILED[name]
    assert manifest.verification is not None
    golden, program = manifest.verification.submodels[name], program_of(manifest, name)
    assert golden.call_shapes
    for shapes in golden.call_shapes:
        assert choose(program, shapes) is not None
    assert bool(entry.independent_axis) == bool(program.row_axes)


def test_golden_vectors_of_all_branches_are_split(bundle: Bundle) -> None:
    """Those of older bundles hold a call of three branches in one batch; the program is for one."""
    program = program_of(bundle.manifest, "unet")
    (compiled,) = program.specialisations
    rows = {tensor.name for tensor in bundle.manifest.submodels["unet"].inputs if "batch" in tensor.shape}
    assert rows == set(program.row_axes) == {"sample", "added_time_ids", "image_embedding", "audio_tokens"}
    batch = {
        name: (GUIDANCE_BRANCHES, *shape[1:]) if name in rows else shape
        for name, shape in compiled.shapes.items()
    }
    assert choose(program, batch) == (compiled, 1)
    assert choose(program, compiled.shapes) == (compiled, None)


def program_of(manifest: Manifest, name: str) -> Program:
    """What a submodel would be compiled to, for the golden clip."""
    assert manifest.verification is not None
    entry, info = COMPILED[name], manifest.submodels[name]
    side = manifest.verification.clip.resolution_pixels
    axes = {
        tensor.name: tensor.shape.index(entry.independent_axis)
        for tensor in info.inputs
        if entry.independent_axis in tensor.shape
    }
    plan = entry.sizes(manifest.constants, side, side)
    programs = tuple(Specialisation(str(sizes), shapes_of(info, sizes)) for sizes in plan)
    return Program(tuple(tensor.name for tensor in info.inputs), (), (), "", (), programs, axes)
