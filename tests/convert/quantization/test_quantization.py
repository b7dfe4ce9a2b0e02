"""Bundles of other precisions: near full precision, made of integer kernels, and refused with a sentence."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result

import sonic
from sonic.errors import InputError
from sonic.options import GenerationOptions
from sonic.verification.compare import compare
from sonic_calibration.graphs.layers import find_layers
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.recording.examples import Example
from sonic_calibration.recording.recordings import RecordingOptions, Recordings
from sonic_convert.cli.main import main
from sonic_convert.quantization import half
from sonic_convert.quantization.comparison import compare_bundles, record_comparison
from sonic_convert.quantization.plan import PrecisionPlan, preset
from sonic_convert.quantization.profiles import check_profile
from sonic_convert.quantization.qdq import QdqOptions, open_quantized, quantize_graph
from sonic_convert.quantization.quantize import QuantizationOptions, calibrate_bundle, quantize_bundle
from sonic_convert.quantization.report import write_sensitivity
from sonic_convert.quantization.search import parse_budget, search
from sonic_convert.quantization.sensitivity import measure_sensitivity

BEFORE_THE_UNET = (
    "audio_encoder", "audio2token", "audio2bucket", "image_encoder", "vae_encoder", "vae_decoder",
)  # fmt: skip
SHORT = RecordingOptions(calls=3, clip=GenerationOptions(min_resolution=64, inference_steps=2))


@dataclass(frozen=True)
class Calibrated:
    """A full-precision bundle with what its layers saw."""

    bundle: Path
    calibration: Calibration
    recordings: Recordings
    file: Path

    def graph(self, submodel: str) -> Path:
        return self.bundle / submodel / "model.onnx"

    def precisions(self, submodel: str, plan: PrecisionPlan) -> dict[str, str]:
        layers = find_layers(StoredGraph.open(self.graph(submodel)))
        return {layer.name: plan.of(submodel, layer.name) for layer in layers}


@pytest.fixture(scope="module")
def example(portrait: Path, short_wav: Path) -> Example:
    return Example(portrait, short_wav)


@pytest.fixture(scope="module")
def calibrated(small, example: Example, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    folder = tmp_path_factory.mktemp("calibrated")
    file = folder / "small.npz"
    submodels = preset("int8").quantized
    found = calibrate_bundle(small.bundle, [example], SHORT, file, submodels, folder / "work")
    return Calibrated(small.bundle, *found, file)


@pytest.fixture(scope="module")
def int8(calibrated: Calibrated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "int8"
    quantize_bundle(calibrated.bundle, path, QuantizationOptions(preset("int8")), calibrated.calibration)
    return path


def outputs(graph: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(graph), quiet(), providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == set(inputs)
    return np.asarray(session.run(None, inputs)[0])


def quiet(optimized: Path | None = None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return options


def operators(graph: Path, folder: Path) -> dict[str, list[onnx.NodeProto]]:
    """What ONNX Runtime makes of a graph, by operator."""
    optimized = folder / "optimized.onnx"
    onnxruntime.InferenceSession(str(graph), quiet(optimized), providers=["CPUExecutionProvider"])
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in onnx.load(optimized).graph.node:
        found.setdefault(node.op_type, []).append(node)
    return found


@pytest.mark.parametrize("isa", ["x86", "aarch64"])
@pytest.mark.parametrize("submodel", ["unet", "vae_decoder"])
def test_integer_graphs_are_near_full_precision(
    calibrated: Calibrated, submodel: str, isa: str, tmp_path: Path
) -> None:
    precisions = calibrated.precisions(submodel, preset("int8"))
    statistics = calibrated.calibration.tensors[submodel]
    path = tmp_path / "model.onnx"
    facts = quantize_graph(calibrated.graph(submodel), path, precisions, statistics, QdqOptions(isa=isa))
    assert facts["layers"]["int8"] > 20
    for sample in calibrated.recordings.samples(submodel):
        (expected,) = sample.arrays("out").values()
        # Random weights; the trained checkpoint's error is far smaller (docs/notes/benchmarks-journal.md).
        assert compare(outputs(path, sample.arrays("in")), expected).relative_l2 < 0.1


def test_integer_kernels_are_reached(calibrated: Calibrated, int8: Path, tmp_path: Path) -> None:
    found = operators(int8 / "unet/model.onnx", tmp_path)
    asked = calibrated.precisions("unet", preset("int8"))
    floats = sum(precision == "fp32" and "conv" in layer for layer, precision in asked.items())
    assert len(found["QLinearConv"]) > 50 and len(found["MatMulIntegerToFloat"]) > 100
    assert len(found.get("Conv", [])) == floats == 2


def test_smoothing_and_corrections_help(calibrated: Calibrated) -> None:
    graph = StoredGraph.open(calibrated.graph("unet"))
    precisions = calibrated.precisions("unet", preset("int8"))
    statistics = calibrated.calibration.tensors["unet"]

    def error(**options: bool) -> float:
        session = open_quantized(graph, precisions, statistics, QdqOptions(**options))  # type: ignore[arg-type]
        total = 0.0
        for sample in calibrated.recordings.samples("unet"):
            (expected,) = sample.arrays("out").values()
            total += compare(session.run(None, sample.arrays("in"))[0], expected).relative_l2
        return total

    assert error() < error(smooth=False, correct_bias=False)


def test_half_precision_halves_the_weights_and_is_widened_when_it_is_needed(
    calibrated: Calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "SMALL", 1 << 12)
    monkeypatch.setattr(half, "SHARE_AT_LOAD", 0)
    path = tmp_path / "model.onnx"
    precisions = calibrated.precisions("unet", preset("fp16"))
    quantize_graph(calibrated.graph("unet"), path, precisions, {})
    graph = StoredGraph.open(path)
    halves = [tensor for tensor in graph.initializers.values() if tensor.data_type == 10]
    assert len(halves) == len(precisions)
    large = {tensor.name for tensor in halves if np.prod(tensor.dims) > 1 << 12}
    assert large and large <= {value.name for value in graph.model.graph.input}
    casts = [node for node in operators(path, tmp_path).get("Cast", []) if node.name.endswith("widen/Cast")]
    uses = sum(
        len(layer.uses)
        for layer in find_layers(StoredGraph.open(calibrated.graph("unet")))
        if layer.parameters > 1 << 12
    )
    assert len(casts) == uses
    sample = calibrated.recordings.samples("unet")[-1]
    (expected,) = sample.arrays("out").values()
    assert compare(outputs(path, sample.arrays("in")), expected).relative_l2 < 2e-3


def test_what_float16_cannot_hold_stays_float32(calibrated: Calibrated, tmp_path: Path) -> None:
    model = onnx.load(calibrated.graph("audio2bucket"))
    tensor = next(t for t in model.graph.initializer if t.name == "proj1.weight.transposed")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] = 1e5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "large.onnx")
    precisions = calibrated.precisions("audio2bucket", preset("fp16"))
    facts = quantize_graph(tmp_path / "large.onnx", tmp_path / "model.onnx", precisions, {})
    assert facts["layers"] == {"fp32": 1, "fp16": 2}


def test_native_half_precision_follows_the_calibrated_values(calibrated: Calibrated, tmp_path: Path) -> None:
    precisions = calibrated.precisions("vae_decoder", preset("fp16-native"))
    statistics = dict(calibrated.calibration.tensors["vae_decoder"])
    facts = quantize_graph(calibrated.graph("vae_decoder"), tmp_path / "a.onnx", precisions, statistics)
    assert set(facts["layers"]) == {"fp16-native"}
    name = next(iter(statistics))
    large = Calibration.load(calibrated.file).tensors["vae_decoder"][name]
    large.maximum = 4e4
    path = tmp_path / "b.onnx"
    facts = quantize_graph(calibrated.graph("vae_decoder"), path, precisions, statistics | {name: large})
    assert facts["layers"]["fp16"] >= 1
    sample = calibrated.recordings.samples("vae_decoder")[0]
    (expected,) = sample.arrays("out").values()
    assert compare(outputs(path, sample.arrays("in")), expected).relative_l2 < 1e-2


def test_a_bundle_is_smaller_says_how_and_talks(
    calibrated: Calibrated, int8: Path, example: Example, tmp_path: Path
) -> None:
    model = sonic.load_model(int8)
    manifest = model.manifest
    assert manifest.submodels["unet"].precision == "int8"
    assert manifest.submodels["image_encoder"].precision == "weights8"
    assert manifest.quantization["calibration"] == calibrated.calibration.digest
    whole = sonic.load_model(calibrated.bundle).manifest
    assert manifest.submodels["unet"].bytes < 0.5 * whole.submodels["unet"].bytes
    assert manifest.submodels["unet"].inputs == whole.submodels["unet"].inputs
    settings = GenerationOptions(min_resolution=64, inference_steps=2)
    compared = compare_bundles(calibrated.bundle, int8, [example], settings)
    assert 20 < compared.worst_psnr_db < 100
    copy = Path(shutil.copytree(int8, tmp_path / "copy"))
    record_comparison(copy, compared)
    noted = sonic.load_model(copy).manifest.parity["full_precision"]
    assert noted["psnr_db"] == pytest.approx(compared.psnr_db)


def test_the_same_gives_the_same_bytes_and_resumes(
    calibrated: Calibrated, int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = QuantizationOptions(preset("int8"))
    made: list[str] = []

    def interrupted_at_the_unet(source: Path, *rest: object) -> object:
        made.append(source.parent.name)
        if made == [*BEFORE_THE_UNET, "unet"]:
            raise KeyboardInterrupt
        return quantize_graph(source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("sonic_convert.quantization.quantize.quantize_graph", interrupted_at_the_unet)
    target = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(calibrated.bundle, target, options, calibrated.calibration)
    assert not target.exists() and not list(tmp_path.glob(".again*"))
    quantize_bundle(calibrated.bundle, target, options, calibrated.calibration)
    assert made == [*BEFORE_THE_UNET, "unet", "unet"]  # what was finished is not made again
    for path in int8.rglob("*.onnx"):
        assert path.read_bytes() == (target / path.relative_to(int8)).read_bytes()


@pytest.mark.parametrize("profile", ["tensorrt", "timvx"])
def test_profiles_are_kept_and_checked(
    calibrated: Calibrated, int8: Path, profile: str, tmp_path: Path
) -> None:
    options = QuantizationOptions(PrecisionPlan("some", {"vae_decoder": (("*", "int8"),)}), profile=profile)
    quantize_bundle(calibrated.bundle, tmp_path / "bundle", options, calibrated.calibration)
    check_profile(tmp_path / "bundle/vae_decoder/model.onnx", profile)
    with pytest.raises(InputError, match="does not fit the profile"):
        check_profile(int8 / "vae_decoder/model.onnx", profile)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("scales", -1.0, "not positive"), ("zero_points", 3, "has a zero point")],
)
def test_broken_graphs_are_named(int8: Path, field: str, value: float, reason: str, tmp_path: Path) -> None:
    model = onnx.load(int8 / "vae_decoder/model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith(f"int8.{field}"))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[...] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=reason):
        check_profile(tmp_path / "model.onnx", "onnxruntime")


def test_sensitivity_is_measured_written_and_remembered(
    calibrated: Calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = sonic.load_model(calibrated.bundle).engine.bundle
    arguments = (bundle, "vae_decoder", calibrated.recordings, calibrated.calibration, preset("int8"))
    found = measure_sensitivity(*arguments, calls=1, work=tmp_path)
    assert [one.error for one in found] == sorted((one.error for one in found), reverse=True)
    assert all(0 < one.error < 1 for one in found)
    assert not any("conv_in" in one.unit for one in found)  # float32 in the plan
    monkeypatch.setattr("sonic_convert.quantization.sensitivity.open_quantized", None)
    assert measure_sensitivity(*arguments, calls=1, work=tmp_path) == found
    written = write_sensitivity(tmp_path / "report", found)
    assert found[0].unit in written[1].read_text()
    assert json.loads(written[0].read_text())[0]["unit"] == found[0].unit


def test_budgets(calibrated: Calibrated, example: Example, tmp_path: Path) -> None:
    options = QuantizationOptions(PrecisionPlan("decoder", {"vae_decoder": (("*", "int8"),)}))
    calibration = Calibration(
        {"vae_decoder": calibrated.calibration.tensors["vae_decoder"]},
        {"vae_decoder": calibrated.calibration.graphs["vae_decoder"]},
        calibrated.calibration.recordings,
    )
    settings = GenerationOptions(min_resolution=64, inference_steps=2)

    def found(budget: str):  # type: ignore[no-untyped-def]
        return search(calibrated.bundle, options, calibration, calibrated.recordings, parse_budget(budget),
                      [example], tmp_path, settings)  # fmt: skip

    share = found("layers=10%").options
    total = len(calibrated.precisions("vae_decoder", preset("int8")))
    kept = [layer for layer in calibrated.precisions("vae_decoder", share.plan).items() if layer[1] == "fp32"]
    assert 0 < len(kept) <= 0.1 * total
    free = found("psnr=5").options.notes
    assert free["kept_in_float"] == [] and free["psnr_db_of_examples"] > 5
    wanted = free["psnr_db_of_examples"] + 1.5
    strict = found(f"psnr={wanted:.1f}").options.notes
    assert strict["kept_in_float"] and strict["psnr_db_of_examples"] >= wanted - 0.1
    assert not list(tmp_path.glob("trial-*"))


@pytest.mark.parametrize("text", ["psnr", "psnr=-3", "layers=5", "ssim=1", ""])
def test_budgets_that_make_no_sense(text: str) -> None:
    with pytest.raises(InputError, match="psnr=35"):
        parse_budget(text)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_the_commands_make_a_bundle(calibrated: Calibrated, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('[vae_decoder]\n"*conv_in" = "fp32"\n"*" = "int8"\n')
    result = run("quantize", calibrated.bundle, tmp_path / "bundle", "--precision", plan,
                 "--calibration", calibrated.file)  # fmt: skip
    assert result.exit_code == 0, result.output
    submodels = sonic.load_model(tmp_path / "bundle").manifest.submodels
    assert submodels["vae_decoder"].precision == "int8" and submodels["unet"].precision == "fp32"


def test_bad_input_gets_one_sentence(calibrated: Calibrated, other, int8: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no calibration")
    (tmp_path / "plan.toml").write_text('[unet]\n"*" = "int7"\n')
    target, calibration = tmp_path / "target", ("--calibration", calibrated.file)
    source = calibrated.bundle
    for arguments, sentence in (
        (("calibrate", source, tmp_path / "c.npz", "--examples", tmp_path / "empty"), "holds no portrait"),
        (("calibrate", source, tmp_path / "c.npz", "--examples", tmp_path / "none"), "cannot be read"),
        (("quantize", source, target, "--calibration", tmp_path / "text.npz"), "is no calibration"),
        (("quantize", other.bundle, target, *calibration), "was collected from another '"),
        (("quantize", int8, target, *calibration), "already"),
        (("quantize", source, target, *calibration, "--precision", "int9"), "should be one of fp32"),
        (("quantize", source, target, *calibration, "--precision", "int8-max"), "says nothing"),
        (("quantize", source, target, "--precision", tmp_path / "plan.toml"), "'int7'"),
        (("quantize", source, target, "--budget", "much"), "should be psnr=35"),
        (("quantize", source, target, *calibration, "--budget", "psnr=35"), "leave the calibration"),
        (("compare", source, tmp_path / "none"), "no bundle"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert sentence in result.output and "Traceback" not in result.output, result.output
        assert len(result.output.strip().splitlines()) == 1, result.output
    assert not target.exists()
