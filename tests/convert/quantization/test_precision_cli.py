"""The commands that make and compare bundles of other precisions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sonic.bundle.store import open_bundle
from sonic_calibration.ranges.calibration import Calibration
from sonic_convert.cli.main import main

SHORT = ["--calls", "2", "--resolution", "64", "--steps", "2"]
DECODER = '[vae_decoder]\n"*conv_in" = "fp32"\n"decoder.mid_block.*" = "int8"\n[audio2token]\n"*" = "fp16"\n'


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of precisions with few integers."""
    path = tmp_path_factory.mktemp("plan") / "decoder.toml"
    path.write_text(DECODER)
    return path


def assert_one_sentence(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (error,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert message in error
    assert "Traceback" not in result.output


def test_a_bundle_is_calibrated_and_quantized(small, examples: Path, plan: Path, tmp_path: Path) -> None:
    file, target = tmp_path / "small.npz", tmp_path / "mixed"
    result = run("calibrate", small.bundle, file, "--precision", plan, "--examples", examples, *SHORT)
    assert result.exit_code == 0, result.output
    calibration = Calibration.load(file)
    assert f"{file}: {calibration.digest[:16]}" in result.output
    assert f"vae_decoder: {len(calibration.tensors['vae_decoder'])} tensors of 1 calls" in result.output
    result = run("quantize", small.bundle, target, "--precision", plan, "--calibration", file,
                 "--isa", "aarch64", "--method", "minmax", "--no-smooth")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "4 int8" in result.output and "3 fp16" in result.output and "MB in all" in result.output
    manifest = open_bundle(target).manifest
    said = manifest.quantization
    assert said["plan"] == "decoder" and said["calibration"] == calibration.digest
    options = {"isa": "aarch64", "method": "minmax", "smooth": False}
    assert options.items() <= said["options"].items()
    assert manifest.submodels["vae_decoder"].precision == "int8"
    assert manifest.submodels["audio2token"].precision == "fp16"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"small.npz", "small.npz.work", "mixed", "mixed.work"}


def test_a_checkpoint_is_converted_to_another_precision(small, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[audio2token]\n"*" = "weights8"\n')
    work = tmp_path / "work"  # with the stages of the full-precision bundle
    shutil.copytree(small.bundle.with_name("bundle.work"), work)
    target = tmp_path / "b"
    result = run("convert", small.checkpoint, target, "--precision", tmp_path / "p.toml", "--work", work)
    assert result.exit_code == 0, result.output
    assert "3 weights8" in result.output
    assert open_bundle(target).manifest.submodels["audio2token"].precision == "weights8"


def test_sensitivities_are_measured(small, examples: Path, plan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sensitivity"
    result = run("sensitivity", small.bundle, folder, "--precision", plan, "--examples", examples, *SHORT,
                 "--tried-calls", "1")  # fmt: skip
    assert result.exit_code == 0, result.output
    names = {"sensitivity.json", "sensitivity.md", "sensitivity.png"}
    assert {path.name for path in folder.iterdir()} == names | {"work"}
    assert all(str(folder / name) in result.output for name in names)
    (one,) = json.loads((folder / "sensitivity.json").read_text())
    assert one["unit"] == "decoder.mid_block.resnets.0" and len(one["layers"]) == 4 and one["error"] > 1e-4


def test_a_bundle_is_compared_and_the_result_is_noted(
    small, fp16: Path, examples: Path, tmp_path: Path
) -> None:
    target, report = tmp_path / "fp16", tmp_path / "numbers.json"
    shutil.copytree(fp16, target)
    arguments = ["compare", small.bundle, target, "--examples", examples, "--json", report, *SHORT[2:]]
    result = run(*arguments, "--duration", "0.3", "--record")
    assert result.exit_code == 0, result.output
    assert "one.png" in result.output and "mean PSNR" in result.output
    numbers = json.loads(report.read_text())
    assert 50 < numbers["psnr_db"] < 100
    assert open_bundle(target).manifest.parity == {"full_precision": numbers}


def test_a_folder_without_examples_is_named(small, fp16: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for command in (
        ["calibrate", small.bundle, tmp_path / "c.npz"],
        ["quantize", small.bundle, tmp_path / "b"],
        ["sensitivity", small.bundle, tmp_path / "s"],
        ["compare", small.bundle, fp16],
    ):
        assert_one_sentence(run(*command, "--examples", empty), f"{empty} holds no portrait")
        missing = run(*command, "--examples", tmp_path / "none")
        assert_one_sentence(missing, "none: the examples cannot be read")
    assert not (tmp_path / "b").exists() and not (tmp_path / "c.npz").exists()


def test_a_file_that_is_no_calibration_is_named(small, tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    for content in (b"no calibration", b"", b"PK\x03\x04 and no more"):
        path.write_bytes(content)
        result = run("quantize", small.bundle, tmp_path / "b", "--calibration", path)
        assert_one_sentence(result, f"{path} is no calibration")
    result = run("quantize", small.bundle, tmp_path / "b", "--calibration", tmp_path / "missing.npz")
    assert_one_sentence(result, "missing.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"c.npz"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int4"], "precision is 'int4', but should be one of fp32"),
        (["--precision", "missing.toml"], "missing.toml: the precisions cannot be read"),
        (["--budget", "psnr"], "the budget is 'psnr'"),
        (["--budget", "layers=5"], "psnr=35 (dB) or layers=5%"),
        (["--calls", "0"], "should be at least 1"),
        (["--gigabytes", "0"], "should be at least 1"),
    ],
)
def test_a_wrong_option_is_named(small, arguments: list[str], message: str, tmp_path: Path) -> None:
    for command in (["quantize", small.bundle], ["convert", small.checkpoint, "--precision", "int8"]):
        result = run(*command, tmp_path / "b", *arguments)
        assert_one_sentence(result, message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--isa", "--profile", "--method"])
def test_an_unknown_choice_is_named_with_those_that_exist(small, option: str, tmp_path: Path) -> None:
    result = run("quantize", small.bundle, tmp_path / "b", option, "riscv")
    assert result.exit_code == 2 and "'riscv' is not one of" in result.output


def test_a_quantized_source_is_refused(
    int8: Path, examples: Path, calibration_file: Path, tmp_path: Path
) -> None:
    for command in (
        ["quantize", int8, tmp_path / "b", "--precision", "fp16"],
        ["quantize", int8, tmp_path / "b", "--calibration", calibration_file],
        ["calibrate", int8, tmp_path / "c.npz", "--examples", examples],
        ["sensitivity", int8, tmp_path / "s", "--examples", examples],
    ):
        assert_one_sentence(run(*command), "already; give the full-precision bundle")
    assert not (tmp_path / "b").exists() and not (tmp_path / "c.npz").exists()


def test_a_bundle_that_does_not_exist_is_named(tmp_path: Path) -> None:
    for command in (
        ["quantize", "no-such-bundle", tmp_path / "b"],
        ["calibrate", "no-such-bundle", tmp_path / "c.npz"],
        ["sensitivity", "no-such-bundle", tmp_path / "s"],
        ["compare", "no-such-bundle", "sonic-tiny"],
        ["compare", "sonic-tiny", "no-such-bundle"],
    ):
        assert_one_sentence(run(*command), "no-such-bundle")


@pytest.mark.parametrize("command", ["calibrate", "sensitivity"])
def test_a_precision_that_needs_no_calibration_is_said(
    small, examples: Path, command: str, tmp_path: Path
) -> None:
    result = run(command, small.bundle, tmp_path / "out", "--precision", "fp16", "--examples", examples)
    assert_one_sentence(result, "nothing to calibrate; choose int8 or fp16-native")
