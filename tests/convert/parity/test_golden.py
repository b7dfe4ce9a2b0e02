"""Golden vectors are PyTorch's, small, of a real clip; other precisions carry them with other tolerances."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest import SUBMODEL_NAMES, VerificationInfo
from sonic.bundle.store import PACKAGED_BUNDLES, open_bundle
from sonic.cli.main import main
from sonic.errors import InputError, SonicWarning
from sonic.media.face import detect_faces
from sonic.media.portrait import load_portrait
from sonic.model import load_model
from sonic.progress import NoProgress
from sonic.verification.golden import ExpectedClip, GoldenVectors
from sonic_convert.bundle_writer import write_manifest
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.parity import golden as module
from sonic_convert.parity.golden import make_golden
from sonic_convert.parity.reference import TorchReference
from sonic_convert.quantization.plan import PrecisionPlan
from sonic_convert.quantization.quantize import QuantizationOptions, quantize_bundle

FEW = QuantizationOptions(
    PrecisionPlan("few", {"audio2token": (("*", "weights8"),), "audio2bucket": (("*", "fp16"),)})
)


def info_of(bundle: Bundle) -> VerificationInfo:
    assert bundle.manifest.verification is not None
    return bundle.manifest.verification


def test_a_bundle_carries_little(small, other) -> None:
    for converted in (small, other):
        bundle = open_bundle(converted.bundle)
        info = info_of(bundle)
        assert tuple(info.submodels) == SUBMODEL_NAMES
        assert sum(file.bytes for file in info.files) < 2_500_000
        assert {file.path.split("/")[0] for file in info.files} == {"golden"}


def test_the_inputs_are_those_of_the_clip(small) -> None:
    bundle = open_bundle(small.bundle)
    info = info_of(bundle)
    for name, golden in info.submodels.items():
        vectors = GoldenVectors.load(bundle.directory / golden.file.path)
        assert {key: array.shape for key, array in vectors.inputs.items()} in golden.call_shapes, name
        assert list(vectors.inputs) == [tensor.name for tensor in bundle.manifest.submodels[name].inputs]
        assert all(np.isfinite(array).all() for array in vectors.inputs.values())
    shapes = {name: golden.call_shapes for name, golden in info.submodels.items()}
    window = bundle.manifest.constants.sampler.window_frames
    assert [call["sample"] for call in shapes["unet"]] == [(1, window, 8, 16, 16)]
    assert [call["audio_windows"][1] for call in shapes["audio2token"]] == [1, 3]  # silence, and speech
    vectors = GoldenVectors.load(bundle.directory / "golden/unet.npz")
    assert -1.4 < vectors.inputs["timestep"][0] < 1.6  # between the smallest and the largest noise
    # The branch that is given the picture and the speech, which differs from frame to frame.
    tokens = vectors.inputs["audio_tokens"][0]
    assert np.ptp(tokens[: module.FRAMES], axis=0).max() > 1e-3
    assert np.abs(vectors.inputs["sample"][0, :, 4:]).max() > 0
    assert np.abs(vectors.inputs["image_embedding"]).max() > 0
    clip = ExpectedClip.load(bundle.directory / info.clip.expected.path)
    assert clip.noise.shape == (4, 4, 16, 16) and clip.frames.shape == (7, 128, 128, 3)
    assert clip.frames.std() > 1


@pytest.mark.parametrize("which", ["small", "sonic-tiny"])
def test_the_given_face_is_where_a_detector_finds_it(which: str, request: pytest.FixtureRequest) -> None:
    tiny = which == "sonic-tiny"
    model = load_model(PACKAGED_BUNDLES / which if tiny else request.getfixturevalue(which).bundle)
    clip = info_of(model.engine.bundle).clip
    picture = np.asarray(load_portrait(model.engine.bundle.directory / clip.portrait.path))
    with model.engine.open("face_detector") as detector:
        (face,) = detect_faces(picture, detector.run, model.constants.face)
    boxes = np.array([face.box, clip.face_box])
    shared = np.prod(boxes[:, 2:].min(axis=0) - boxes[:, :2].max(axis=0))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert shared / (areas.sum() - shared) > (0.9 if tiny else 0.7)


@pytest.mark.parametrize("name", ["audio_encoder", "vae_encoder", "face_detector"])
def test_the_outputs_are_those_of_torch(small, name: str) -> None:
    vectors = GoldenVectors.load(small.bundle / "golden" / f"{name}.npz")
    reference = TorchReference(Checkpoint.open(small.checkpoint))
    with reference.network(name) as network, torch.inference_mode():
        output = network(*map(torch.from_numpy, vectors.inputs.values())).numpy()
    ((_, expected),) = vectors.outputs.items()
    assert output.shape == expected.shape
    np.testing.assert_allclose(expected.values_of(output), expected.values, rtol=1e-4, atol=1e-4)


def test_what_differs_from_torch_is_no_golden_bundle(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, bundle = Checkpoint.open(small.checkpoint), open_bundle(small.bundle)

    def make() -> VerificationInfo:
        return make_golden(checkpoint, bundle, tmp_path / "golden", ["key"], NoProgress())

    original = module.published_output
    with monkeypatch.context() as patch:
        patch.setattr(module, "published_output", lambda *arguments: 1.001 * original(*arguments))
        with pytest.raises(InputError, match="'image_encoder' differs from PyTorch by 9.99e-04"):
            make()
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(module, "MINIMUM_PSNR_DB", 200.0)
        with pytest.raises(InputError, match="a clip of the exported submodels differs from PyTorch's"):
            make()
    assert not list(tmp_path.iterdir())


def test_a_reduced_bundle_has_tolerances_of_its_own(small, tmp_path: Path) -> None:
    source = info_of(open_bundle(small.bundle))
    quantize_bundle(small.bundle, tmp_path / "few", FEW)
    reduced = info_of(open_bundle(tmp_path / "few"))
    assert reduced.files == source.files
    for name, golden in reduced.submodels.items():
        before = source.submodels[name]
        if name in ("audio2token", "audio2bucket"):
            assert golden.tolerance == pytest.approx(1.5 * golden.relative_l2 + before.tolerance, rel=0.01)
        else:
            assert golden == before
    assert reduced.submodels["audio2token"].relative_l2 > 1e-3  # the other's weights are halves before
    assert reduced.clip.psnr_db < source.clip.psnr_db
    wanted = min(50.0, reduced.clip.psnr_db - 3)
    assert reduced.clip.minimum_psnr_db == pytest.approx(wanted, abs=0.1)
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "few")])
    assert result.exit_code == 0, (result.output, result.exception)


def test_what_was_measured_is_not_measured_again(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quantize_bundle(small.bundle, tmp_path / "a", FEW, work=tmp_path / "work")
    monkeypatch.setattr(module, "measure_submodel", None)
    again = quantize_bundle(small.bundle, tmp_path / "b", FEW, work=tmp_path / "work")
    assert again.verification == first.verification


def test_values_that_are_not_finite_make_no_bundle(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_submodel", lambda *_: (np.inf, np.inf))
    with pytest.raises(InputError, match="'audio2token' returns values that are not finite in the precision"):
        quantize_bundle(small.bundle, tmp_path / "few", FEW)
    assert not (tmp_path / "few").exists()


def test_bundles_without_golden_vectors_make_such(small, tmp_path: Path) -> None:
    manifest = quantize_bundle(small.bundle, tmp_path / "some", FEW, verifiable=False)
    assert manifest.verification is None and not (tmp_path / "some/golden").exists()
    with pytest.warns(SonicWarning, match="trial holds no golden vectors.*for .*again either"):
        again = quantize_bundle(small_without_golden(small, tmp_path), tmp_path / "again", FEW)
    assert again.verification is None
    load_model(tmp_path / "again")


def small_without_golden(small, folder: Path) -> Path:
    """The small bundle as an earlier version made it."""
    bundle = Path(shutil.copytree(small.bundle, folder / "trial"))
    shutil.rmtree(bundle / "golden")
    write_manifest(bundle, replace(open_bundle(small.bundle).manifest, verification=None))
    return bundle
