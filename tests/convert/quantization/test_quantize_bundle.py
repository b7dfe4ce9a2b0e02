"""From a full-precision bundle to one of another precision."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import sonic
from sonic.bundle.manifest import SUBMODEL_NAMES
from sonic.bundle.store import PACKAGED_BUNDLES, open_bundle
from sonic.errors import InputError, OutputError
from sonic.options import GenerationOptions
from sonic.verification.verify import verify_bundle
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.recording.examples import Example
from sonic_calibration.recording.recordings import RecordingOptions, Recordings
from sonic_convert.quantization import quantize as module
from sonic_convert.quantization.plan import PrecisionPlan, preset
from sonic_convert.quantization.quantize import QuantizationOptions, calibrate_bundle, quantize_bundle

INT8 = QuantizationOptions(preset("int8"))
SMALL_WEIGHTS = {"audio2token": (("*", "weights8"),), "audio2bucket": (("*", "fp16"),)}
FEW = QuantizationOptions(PrecisionPlan("few", dict(SMALL_WEIGHTS)))  # quickly made


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The submodels whose graphs are made from now on."""
    names: list[str] = []
    quantize_graph = module.quantize_graph

    def noted(source: Path, *arguments, **options):
        names.append(source.parent.name)
        return quantize_graph(source, *arguments, **options)

    monkeypatch.setattr(module, "quantize_graph", noted)
    yield names


def digests(bundle: Path) -> dict[str, str]:
    return {file.path: file.sha256 for file in open_bundle(bundle).manifest.files}


def test_a_bundle_of_integers_generates(int8: Path, portrait: Path, short_wav: Path) -> None:
    model = sonic.load_model(int8)
    video = model.generate(portrait, short_wav, min_resolution=64, inference_steps=2)
    assert len(video) == 18 and min(video.shape[1:3]) == 64  # 0.7 s
    assert video[0].std() > 1


def test_the_manifest_says_what_was_done(int8: Path, small, calibration: Calibration) -> None:
    manifest, source = open_bundle(int8).manifest, open_bundle(small.bundle).manifest
    assert manifest.name == "int8" and manifest.parity == {}
    assert {name: info.precision for name, info in manifest.submodels.items()} == {
        name: {"unet": "int8", "vae_decoder": "int8", "frame_interpolator": "fp32", "face_detector": "fp32"}
        .get(name, "weights8")
        for name in SUBMODEL_NAMES
    }  # fmt: skip
    said = manifest.quantization
    assert said["plan"] == "int8" and said["profile"] == "onnxruntime"
    assert said["calibration"] == calibration.digest
    assert said["options"] == asdict(INT8.refined)
    assert [tuple(rule) for rule in said["rules"]["unet"]] == list(preset("int8").rules["unet"])
    assert said["layers"]["unet"]["layers"]["int8"] > 400 and said["layers"]["face_detector"] == {}
    for kept in ("engine", "license", "sources", "constants", "assets"):
        assert getattr(manifest, kept) == getattr(source, kept)


def test_smaller_weights_make_a_smaller_bundle(int8: Path, fp16: Path, small) -> None:
    full, half, eighth = (open_bundle(path).manifest.submodels["unet"] for path in (small.bundle, fp16, int8))
    assert half.bytes < 0.6 * full.bytes and eighth.bytes < 0.4 * full.bytes
    works = [info.work for info in (full, half, eighth)]
    assert all(work is not None for work in works)
    assert works[0].flop == works[1].flop == works[2].flop  # type: ignore[union-attr]


def test_untouched_graphs_are_copies(int8: Path, small) -> None:
    before, after = digests(small.bundle), digests(int8)
    same = {path.split("/")[0] for path in before if before[path] == after[path]}
    assert same == {"NOTICE", "mel_filters.npy", "frame_interpolator", "face_detector", "golden"}


def test_integers_are_verified_with_what_they_cost(int8: Path, small) -> None:
    found = verify_bundle(sonic.load_model(int8))
    assert found.passed
    for row in found.submodels:
        assert row.name in ("frame_interpolator", "face_detector") or row.relative_l2 > 1e-4, row
    full = verify_bundle(sonic.load_model(small.bundle))
    assert found.clip.psnr_db is not None and full.clip.psnr_db is not None
    assert 20 < found.clip.psnr_db < full.clip.psnr_db


def test_the_same_inputs_give_the_same_bytes(
    int8: Path, small, calibration: Calibration, tmp_path: Path
) -> None:
    quantize_bundle(small.bundle, tmp_path / "int8", INT8, calibration)
    assert digests(tmp_path / "int8") == digests(int8)


def test_a_quantized_source_is_refused(int8: Path, fp16: Path, tmp_path: Path) -> None:
    for source in (int8, fp16):
        with pytest.raises(InputError, match=f"{source} is .*{source.name} already.*full-precision bundle"):
            quantize_bundle(source, tmp_path / "again", FEW)
    assert not list(tmp_path.iterdir())


def test_a_source_of_which_some_layers_are_quantized_is_refused(small, tmp_path: Path) -> None:
    rules = {"audio2token": (("proj1*", "weights8"), ("*", "fp32"))}
    options = QuantizationOptions(PrecisionPlan("some", rules))
    manifest = quantize_bundle(small.bundle, tmp_path / "some", options)
    assert manifest.quantization["layers"]["audio2token"]["layers"]["weights8"] > 0
    with pytest.raises(InputError, match="already"):
        quantize_bundle(tmp_path / "some", tmp_path / "again", FEW)


def test_a_calibration_of_another_model_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="collected from another 'vae_decoder'.*sonic-convert calibrate"):
        quantize_bundle(PACKAGED_BUNDLES / "sonic-tiny", tmp_path / "int8", INT8, calibration)
    assert not list(tmp_path.iterdir())


def test_rounded_activations_need_a_calibration(small, calibration: Calibration, tmp_path: Path) -> None:
    partial = replace(calibration, tensors={"vae_decoder": calibration.tensors["vae_decoder"]})
    for given, missing in ((None, "vae_decoder"), (partial, "unet")):
        with pytest.raises(InputError, match=f"'int8' rounds activations of '{missing}'.*calibrate"):
            quantize_bundle(small.bundle, tmp_path / "int8", INT8, given)
    assert not list(tmp_path.iterdir())


def test_what_is_no_bundle_is_not_replaced(small, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="is no bundle"):
        quantize_bundle(small.bundle, tmp_path / "mine", FEW)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


def test_an_error_leaves_nothing_half_written(small, tmp_path: Path, monkeypatch) -> None:
    def full(source: Path, target: Path, *arguments):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "quantize_graph", full)
    with pytest.raises(OutputError, match="cannot write .*new .No space left on device"):
        quantize_bundle(small.bundle, tmp_path / "new", FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["new.work"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_error_leaves_the_old_bundle(small, tmp_path: Path, monkeypatch) -> None:
    quantize_bundle(small.bundle, tmp_path / "b", FEW)
    before = digests(tmp_path / "b")

    def refuse(path: Path, profile: str) -> None:
        raise InputError("it does not fit")

    monkeypatch.setattr(module, "check_profile", refuse)
    rules = {"audio2token": (("*", "fp16"),)}
    with pytest.raises(InputError, match="does not fit"):
        quantize_bundle(small.bundle, tmp_path / "b", QuantizationOptions(PrecisionPlan("p", rules)))
    assert digests(tmp_path / "b") == before
    assert {path.name for path in tmp_path.iterdir()} == {"b", "b.work"}


def test_an_interrupted_call_resumes(small, tmp_path: Path, made: list[str], monkeypatch) -> None:
    counted = module.quantize_graph

    def interrupted(source: Path, *arguments, **options):
        if source.parent.name == "audio2bucket":
            raise KeyboardInterrupt
        return counted(source, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "quantize_graph", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize_bundle(small.bundle, tmp_path / "b", FEW)
    assert made == ["audio2token"] and not (tmp_path / "b").exists()
    quantize_bundle(small.bundle, tmp_path / "b", FEW)
    assert made == ["audio2token", "audio2bucket"]
    assert {path.name for path in tmp_path.iterdir()} == {"b", "b.work"}
    sonic.load_model(tmp_path / "b")


def test_only_what_changed_is_made_again(small, tmp_path: Path, made: list[str]) -> None:
    work = tmp_path / "work"
    quantize_bundle(small.bundle, tmp_path / "a", FEW, work=work)
    quantize_bundle(small.bundle, tmp_path / "b", FEW, work=work)
    assert made == ["audio2token", "audio2bucket"]
    rules = SMALL_WEIGHTS | {"audio2token": (("*", "fp16"),)}
    changed = QuantizationOptions(PrecisionPlan("changed", rules))
    manifest = quantize_bundle(small.bundle, tmp_path / "c", changed, work=work)
    assert made[2:] == ["audio2token"]
    assert manifest.submodels["audio2token"].precision == "fp16"
    before, after = digests(tmp_path / "a"), digests(tmp_path / "c")
    assert [path for path in before if before[path] != after[path]] == ["audio2token/model.onnx"]


def test_full_precision_is_a_copy(small, tmp_path: Path, made: list[str]) -> None:
    manifest = quantize_bundle(small.bundle, tmp_path / "copy", QuantizationOptions(preset("fp32")))
    assert digests(tmp_path / "copy") == digests(small.bundle)
    assert made == [] and {info.precision for info in manifest.submodels.values()} == {"fp32"}


def test_a_copy_in_full_precision_is_a_source(small, tmp_path: Path) -> None:
    quantize_bundle(small.bundle, tmp_path / "copy", QuantizationOptions(preset("fp32")))
    manifest = quantize_bundle(tmp_path / "copy", tmp_path / "few", FEW)
    assert manifest.submodels["audio2token"].precision == "weights8"


def test_a_calibration_is_collected_once(
    small, clips: list[Example], calibration: Calibration, recordings: Recordings, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(recordings.folder, tmp_path / "work" / "recordings")
    calibration.save(tmp_path / "c.npz")
    monkeypatch.setattr(module, "calibrate", None)
    options = RecordingOptions(calls=2, clip=GenerationOptions(min_resolution=64, inference_steps=2))
    found, recorded = calibrate_bundle(
        small.bundle, clips, options, tmp_path / "c.npz", preset("int8").quantized, tmp_path / "work"
    )
    assert found.digest == calibration.digest and recorded.digest == recordings.digest


def test_a_quantized_bundle_is_not_calibrated(int8: Path, clips: list[Example], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already"):
        calibrate_bundle(int8, clips, RecordingOptions(), tmp_path / "c.npz", ["unet"], tmp_path / "work")
    assert not list(tmp_path.iterdir())


def test_the_bundle_of_a_profile_keeps_its_rules(small, calibration: Calibration, tmp_path: Path) -> None:
    plan = PrecisionPlan("decoder", {"vae_decoder": (("decoder.mid_block.*", "int8"),)})
    options = QuantizationOptions(plan, profile="timvx")
    manifest = quantize_bundle(small.bundle, tmp_path / "npu", options, calibration)
    assert manifest.quantization["profile"] == "timvx"
    assert manifest.quantization["options"]["symmetric"] is True
    latents = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
    found, expected = (_decoded(path, latents) for path in (tmp_path / "npu", small.bundle))
    assert 0 < np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(expected)


def _decoded(bundle: Path, latents: np.ndarray) -> np.ndarray:
    with sonic.load_model(bundle).engine.open("vae_decoder") as decoder:
        return decoder.run({"latents": latents})["images"]


def test_a_bundle_is_not_replaced_by_what_is_made_from_it(small, tmp_path: Path) -> None:
    source = Path(shutil.copytree(small.bundle, tmp_path / "source"))
    with pytest.raises(InputError, match="nothing is lost"):
        quantize_bundle(source, tmp_path / "." / "source", FEW)
    sonic.load_model(source)
