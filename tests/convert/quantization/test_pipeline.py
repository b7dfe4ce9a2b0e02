"""From a checkpoint, or a bundle, to a bundle of any precision in one call."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import sonic
from sonic.bundle.store import open_bundle
from sonic.errors import InputError, OutputError
from sonic.options import GenerationOptions
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.recording.recordings import RecordingOptions
from sonic_convert.quantization import pipeline
from sonic_convert.quantization.pipeline import ReducedPrecision, convert_reduced, reduce_bundle
from sonic_convert.quantization.plan import PrecisionPlan
from sonic_convert.quantization.quantize import QuantizationOptions
from sonic_convert.quantization.search import Budget

pytestmark = pytest.mark.filterwarnings("ignore::sonic.SonicWarning")  # the video's shape at 64 pixels
WEIGHTS = QuantizationOptions(PrecisionPlan("weights", {"audio2token": (("*", "weights8"),)}))
INTEGERS = QuantizationOptions(
    PrecisionPlan("mid", {"vae_decoder": (("decoder.mid_block.*", "int8"), ("*upsamplers.0.*", "int8"))})
)
RECORDING = RecordingOptions(calls=2, clip=GenerationOptions(min_resolution=64, inference_steps=2))


def test_weights_alone_need_no_examples(small, tmp_path: Path) -> None:
    options = ReducedPrecision(WEIGHTS, examples=tmp_path / "missing")
    manifest = reduce_bundle(small.bundle, tmp_path / "b", options)
    assert manifest.submodels["audio2token"].precision == "weights8"
    assert {path.name for path in tmp_path.iterdir()} == {"b", "b.work"}


def test_a_given_calibration_is_used(
    small, calibration_file: Path, calibration: Calibration, tmp_path: Path
) -> None:
    options = ReducedPrecision(INTEGERS, examples=tmp_path / "missing", calibration=calibration_file)
    manifest = reduce_bundle(small.bundle, tmp_path / "b", options, tmp_path / "work")
    assert manifest.quantization["calibration"] == calibration.digest
    assert manifest.quantization["layers"]["vae_decoder"]["layers"] == {"int8": 16, "fp32": 35}
    assert not (tmp_path / "work" / "recordings").exists()


def test_examples_are_calibrated_and_a_budget_is_kept(small, examples: Path, tmp_path: Path) -> None:
    options = ReducedPrecision(INTEGERS, RECORDING, examples, budget=Budget(layer_share=0.25))
    manifest = reduce_bundle(small.bundle, tmp_path / "b", options, tmp_path / "work")
    said = manifest.quantization
    calibration = Calibration.load(tmp_path / "work" / "calibration.npz")
    assert said["calibration"] == calibration.digest and set(calibration.tensors) == {"vae_decoder"}
    assert said["layers"]["vae_decoder"]["layers"] == {"int8": 12, "fp32": 39}
    (kept,) = said["kept_in_float"]
    assert kept == said["sensitivity"][0]["unit"]
    assert said["budget"] == {"psnr_db": None, "layer_share": 0.25}
    assert sum(rule[1] == "fp32" for rule in said["rules"]["vae_decoder"]) == 4
    sonic.load_model(tmp_path / "b")


def test_a_budget_of_weights_alone_is_not_ignored(small, examples: Path, tmp_path: Path) -> None:
    options = ReducedPrecision(WEIGHTS, RECORDING, examples, budget=Budget(psnr_db=99.9))
    with pytest.raises(InputError, match="rounds none"):
        reduce_bundle(small.bundle, tmp_path / "b", options)


def test_a_budget_with_a_calibration_from_a_file_is_refused(
    small, calibration_file: Path, tmp_path: Path
) -> None:
    options = ReducedPrecision(INTEGERS, calibration=calibration_file, budget=Budget(psnr_db=10))
    with pytest.raises(InputError, match="leave the calibration's file out"):
        reduce_bundle(small.bundle, tmp_path / "b", options)
    assert not list(tmp_path.iterdir())


def test_a_target_that_is_no_bundle_is_said_before_anything_runs(small, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "b").write_text("mine")
    monkeypatch.setattr(pipeline, "calibrate_bundle", None)
    monkeypatch.setattr(pipeline, "convert", None)
    with pytest.raises(OutputError, match="is no bundle"):
        reduce_bundle(small.bundle, tmp_path / "b", ReducedPrecision(INTEGERS))
    with pytest.raises(OutputError, match="is no bundle"):
        convert_reduced(small.checkpoint, tmp_path / "b", ReducedPrecision(INTEGERS))
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_checkpoint_becomes_a_reduced_bundle(small, tmp_path: Path) -> None:
    work = tmp_path / "work"  # with the stages of the full-precision bundle
    shutil.copytree(small.bundle.with_name("bundle.work"), work)
    manifest = convert_reduced(small.checkpoint, tmp_path / "b", ReducedPrecision(WEIGHTS), work=work)
    full = open_bundle(work / "fp32").manifest
    assert full.name == manifest.name == "b"
    assert {info.precision for info in full.submodels.values()} == {"fp32"}
    assert open_bundle(tmp_path / "b").manifest == manifest
    assert manifest.submodels["audio2token"].precision == "weights8"
