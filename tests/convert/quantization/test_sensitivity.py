"""How much each unit's rounding changes what a submodel makes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.bundle.bundle import Bundle
from sonic.diffusion.guidance import guide
from sonic.errors import InputError
from sonic_calibration.graphs.layers import find_layers
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.recording.recordings import Recordings
from sonic_convert.quantization import sensitivity as module
from sonic_convert.quantization.plan import PrecisionPlan
from sonic_convert.quantization.report import write_sensitivity
from sonic_convert.quantization.sensitivity import (
    Sensitivity,
    block_of,
    denoising_weight,
    measure_sensitivity,
)

BLOCKS = ("decoder.mid_block.resnets.0", "decoder.up_blocks.3.resnets.1", "decoder.up_blocks.0.upsamplers.0")


def plan_of(precision: str) -> PrecisionPlan:
    """Three blocks of the decoder."""
    return PrecisionPlan("blocks", {"vae_decoder": tuple((f"{block}.*", precision) for block in BLOCKS)})


@pytest.fixture(scope="module")
def measured(bundle: Bundle, recordings: Recordings, calibration: Calibration) -> list[Sensitivity]:
    return measure_sensitivity(bundle, "vae_decoder", recordings, calibration, plan_of("int8"))


def unit(name: str, layers: int, error: float, submodel: str = "unet") -> Sensitivity:
    return Sensitivity(submodel, name, tuple(f"{name}.{i}" for i in range(layers)), 10, error)


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("unet.down_blocks.0.resnets.1.space.conv1", "unet.down_blocks.0.resnets.1"),
        ("unet.up_blocks.3.attentions.2.time.0.ff.net.2", "unet.up_blocks.3.attentions.2"),
        ("unet.up_blocks.1.upsamplers.0.conv", "unet.up_blocks.1.upsamplers.0"),
        ("unet.down_blocks.1.downsamplers.0.conv", "unet.down_blocks.1.downsamplers.0"),
        ("vision_model.encoder.layers.11.mlp.fc1", "vision_model.encoder.layers.11"),
        ("unet.conv_in", "unet.conv_in"),
        ("resnets", "resnets"),
        ("conv", "conv"),
    ],
)
def test_a_block_follows_from_a_layers_name(layer: str, block: str) -> None:
    assert block_of(layer) == block


def test_the_most_sensitive_block_comes_first(measured: list[Sensitivity], bundle: Bundle) -> None:
    assert {one.unit for one in measured} == set(BLOCKS)
    errors = [one.error for one in measured]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 1e-4
    layers = find_layers(StoredGraph.open(bundle.graph_path("vae_decoder")))
    for one in measured:
        assert all(layer.startswith(one.unit) for layer in one.layers)
        mine = [layer for layer in layers if layer.name in one.layers]
        assert one.parameters == sum(layer.parameters for layer in mine) > 0
        assert len(mine) == sum(layer.name.startswith(f"{one.unit}.") for layer in layers)


def test_an_error_is_that_of_the_results(
    measured: list[Sensitivity], bundle: Bundle, recordings: Recordings, calibration: Calibration, relative_l2
) -> None:
    (sample,) = recordings.samples("vae_decoder")
    graph = StoredGraph.open(bundle.graph_path("vae_decoder"))
    one = measured[0]
    precisions = dict.fromkeys(one.layers, "int8")
    session = module.open_quantized(graph, precisions, calibration.tensors["vae_decoder"])
    (found,) = session.run(None, sample.arrays("in"))
    assert one.error == pytest.approx(relative_l2(found, sample.arrays("out")["images"]), rel=1e-4)


def test_layers_of_a_block_are_tried_alone(
    bundle: Bundle, recordings: Recordings, calibration: Calibration
) -> None:
    plan = PrecisionPlan("layers", {"vae_decoder": ((f"{BLOCKS[0]}.*", "int8"),)})
    found = measure_sensitivity(bundle, "vae_decoder", recordings, calibration, plan, unit="layer")
    assert len(found) == 4 and all(one.layers == (one.unit,) for one in found)
    (whole,) = measure_sensitivity(bundle, "vae_decoder", recordings, calibration, plan)
    assert max(one.error for one in found) < 1.5 * whole.error


def test_more_bits_err_less(
    measured: list[Sensitivity], bundle: Bundle, recordings: Recordings, calibration: Calibration
) -> None:
    found = {one.unit: one.error for one in measured}
    half = measure_sensitivity(bundle, "vae_decoder", recordings, calibration, plan_of("fp16"))
    assert all(0 < one.error < 0.1 * found[one.unit] for one in half)


def test_layers_in_float32_are_not_tried(
    bundle: Bundle, recordings: Recordings, calibration: Calibration
) -> None:
    for plan in (plan_of("fp32"), PrecisionPlan("nothing", {})):
        assert measure_sensitivity(bundle, "vae_decoder", recordings, calibration, plan) == []


def test_an_interrupted_measurement_resumes(
    measured: list[Sensitivity],
    bundle: Bundle,
    recordings: Recordings,
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[int] = []
    open_quantized = module.open_quantized

    def counted(*arguments):
        opened.append(1)
        if len(opened) == 3:
            raise KeyboardInterrupt
        return open_quantized(*arguments)

    def run(precision: str = "int8") -> list[Sensitivity]:
        plan = plan_of(precision)
        return measure_sensitivity(bundle, "vae_decoder", recordings, calibration, plan, work=tmp_path / "w")

    monkeypatch.setattr(module, "open_quantized", counted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run() == measured
    assert len(opened) == 4  # the third again, and no other
    assert run() == measured and len(opened) == 4
    run("weights8")  # another plan
    assert len(opened) == 7
    assert len(list((tmp_path / "w").iterdir())) == 2


def test_what_cannot_be_measured_is_named(
    bundle: Bundle, recordings: Recordings, calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="unit is 'tensor'.*layer, block"):
        measure_sensitivity(bundle, "vae_decoder", recordings, calibration, plan_of("int8"), unit="tensor")
    with pytest.raises(InputError, match="no call of 'unet'"):
        empty = replace(recordings, folder=tmp_path)
        measure_sensitivity(bundle, "unet", empty, calibration, plan_of("int8"))


def test_calls_that_denoise_nothing_count_alike(bundle: Bundle) -> None:
    assert denoising_weight({"example": 3}, bundle.manifest.constants.sampler) == 1


@given(st.floats(1e-3, 700), st.integers(0, 2), st.integers(0, 2**20))
def test_a_call_counts_as_it_does_in_the_denoised_latent(
    bundle: Bundle, sigma: float, branch: int, seed: int
) -> None:
    constants = bundle.manifest.constants.sampler
    predictions = dict(enumerate(np.random.default_rng(seed).normal(size=(3, 5))))

    def denoised(values: dict[int, np.ndarray]) -> np.ndarray:
        v = guide(values, constants.image_guidance[-1], constants.audio_guidance[-1])
        return 0.3 / (sigma**2 + 1) - v * sigma / np.sqrt(sigma**2 + 1)

    moved = predictions | {branch: predictions[branch] + 1}
    change = np.abs(denoised(moved) - denoised(predictions)).mean()
    tags = {"sigma": sigma, "branches": [branch]}
    assert denoising_weight(tags, constants) == pytest.approx(change, rel=1e-6)


def test_a_call_of_all_branches_counts_as_the_largest(bundle: Bundle) -> None:
    constants = bundle.manifest.constants.sampler
    each = [denoising_weight({"sigma": 2.0, "branches": [i]}, constants) for i in range(3)]
    assert denoising_weight({"sigma": 2.0}, constants) == max(each)
    assert denoising_weight({"sigma": 2.0, "branches": [0, 1]}, constants) == max(each[:2])


def test_a_report_has_a_table_and_a_plot(tmp_path: Path) -> None:
    found = [unit("small", 2, 1e-4), unit("large", 3, 0.25), unit("none", 1, 0.0, "vae_decoder")]
    paths = write_sensitivity(tmp_path / "new", found)
    assert [path.name for path in paths] == ["sensitivity.json", "sensitivity.md", "sensitivity.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(p.name for p in paths)
    numbers = json.loads(paths[0].read_text())
    assert [one["unit"] for one in numbers] == ["large", "small", "none"]
    assert numbers[0] == {
        "submodel": "unet", "unit": "large", "layers": ["large.0", "large.1", "large.2"], "parameters": 10,
        "error": 0.25,
    }  # fmt: skip
    table = paths[1].read_text().splitlines()
    assert table[-3:] == [
        "| unet | large | 3 | 10 | 2.50e-01 |",
        "| unet | small | 2 | 10 | 1.00e-04 |",
        "| vae_decoder | none | 1 | 10 | 0.00e+00 |",
    ]
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_a_report_without_matplotlib_has_no_plot(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    paths = write_sensitivity(tmp_path, [unit("a", 1, 0.5)])
    assert [path.suffix for path in paths] == [".json", ".md"]
