"""Which layers stay in float32, so that a budget is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.errors import InputError
from sonic.options import GenerationOptions
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.recording.examples import Example
from sonic_calibration.recording.recordings import Recordings
from sonic_convert.quantization import search as module
from sonic_convert.quantization.plan import PrecisionPlan
from sonic_convert.quantization.quantize import QuantizationOptions
from sonic_convert.quantization.search import Budget, SearchResult, parse_budget, search

DECODER = QuantizationOptions(
    PrecisionPlan(
        "decoder",
        {"vae_decoder": (("*conv_in", "fp32"), ("decoder.up_blocks.[01].*", "int8"))}
        | {"audio2token": (("*", "weights8"),)},
    )
)
BLOCKS = 6
SETTINGS = GenerationOptions(duration=0.2, min_resolution=64, inference_steps=2)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where sensitivities are measured once."""
    return tmp_path_factory.mktemp("search")


@pytest.fixture
def searched(small, calibration: Calibration, recordings: Recordings, clips: list[Example], work: Path):
    def run(budget: Budget, options: QuantizationOptions = DECODER) -> SearchResult:
        return search(small.bundle, options, calibration, recordings, budget, clips, work, SETTINGS)

    return run


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch):
    """Every trial's plan; a clip gets better by 2 dB from 20 with each block that stays in float32."""
    plans: list[PrecisionPlan] = []

    def measure(source: Path, options: QuantizationOptions, *_: object) -> float:
        plans.append(options.plan)
        return 20.0 + 2 * len(kept(options.plan)) / 4

    monkeypatch.setattr(module, "_measure", measure)
    return plans


def kept(plan: PrecisionPlan) -> list[str]:
    """The layers that were made exceptions."""
    return [layer for layer, _ in plan.rules["vae_decoder"][:-2]]


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("psnr=35", Budget(psnr_db=35)),
        (" psnr=27.5 ", Budget(psnr_db=27.5)),
        ("layers=5%", Budget(layer_share=0.05)),
        ("layers=0%", Budget(layer_share=0)),
        ("layers=12.5%", Budget(layer_share=0.125)),
    ],
)
def test_a_budget_is_read(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text",
    ["", "35", "psnr", "psnr=", "psnr=-3", "psnr=3dB", "psnr=1e3", "layers=5", "layers=%", "ssim=0.9",
     "psnr=35,layers=5%", "PSNR=35", "psnr=.5", "psnr=nan"],
)  # fmt: skip
def test_what_is_no_budget_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"psnr=35 \(dB\) or layers=5%") as caught:
        parse_budget(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 200), st.integers(0, 210))
def test_the_fewest_that_keep_a_budget_are_found(most: int, needed: int) -> None:
    tried: list[int] = []

    def keeps(count: int) -> bool:
        assert 0 <= count <= most
        tried.append(count)
        return count >= needed

    assert module._fewest(most, keeps) == (needed if needed <= most else None)
    assert len(tried) <= 2 * most.bit_length() + 2


@given(st.lists(st.integers(1, 5), max_size=10), st.integers(0, 60))
def test_units_are_counted_by_their_layers(sizes: Sequence[int], layers: int) -> None:
    found = [module.Sensitivity("unet", f"u{i}", ("a",) * size, 1, 0.1) for i, size in enumerate(sizes)]
    count = module._units_of(found, layers)
    assert sum(sizes[:count]) <= layers
    assert count == len(sizes) or sum(sizes[: count + 1]) > layers


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_a_share_of_the_most_sensitive_layers_is_kept(searched, trials, share: float) -> None:
    found = searched(Budget(layer_share=share))
    total = sum(len(one.layers) for one in found.sensitivities)
    assert len(found.sensitivities) == BLOCKS and total == 4 * BLOCKS
    layers = kept(found.options.plan)
    assert share * total - 4 < len(layers) <= share * total
    errors = [one.error for one in found.sensitivities]
    assert errors == sorted(errors, reverse=True)
    first = found.sensitivities[: len(layers) // 4]
    assert set(layers) == {layer for one in first for layer in one.layers}
    assert all(found.options.plan.of("vae_decoder", layer) == "fp32" for layer in layers)
    assert found.options.notes["kept_in_float"] == [one.unit for one in first]
    assert found.options.notes["budget"] == {"psnr_db": None, "layer_share": share}
    assert trials == [] and found.options.notes["psnr_db_of_examples"] is None


@pytest.mark.parametrize(("psnr_db", "blocks"), [(20, 0), (21, 1), (22, 1), (27.9, 4), (31.5, 6), (32, 6)])
def test_a_psnr_keeps_as_few_blocks_as_it_needs(searched, trials, psnr_db: float, blocks: int) -> None:
    found = searched(Budget(psnr_db=psnr_db))
    assert found.options.notes["psnr_db_of_examples"] == 20 + 2 * blocks >= psnr_db
    assert len(kept(found.options.plan)) == 4 * blocks
    assert found.options.plan.of("audio2token", "proj1") == "weights8"
    counts = [len(kept(plan)) for plan in trials]
    assert counts[0] == 0 and len(counts) == len(set(counts))  # none is tried twice


def test_a_psnr_that_no_exception_reaches_is_said(searched, trials) -> None:
    with pytest.raises(InputError, match=r"32\.5 dB is not kept.*in float32 \(32\.0 dB\); lower it"):
        searched(Budget(psnr_db=32.5))


@pytest.mark.filterwarnings("ignore::sonic.SonicWarning")  # at 64 pixels the video has another shape
def test_trials_are_bundles_that_are_made_and_removed(searched, work: Path) -> None:
    rules = DECODER.plan.rules | {"vae_decoder": (("decoder.up_blocks.0.upsamplers.0.*", "int8"),)}
    block = PrecisionPlan("block", rules)
    options = QuantizationOptions(block)
    found = searched(Budget(psnr_db=25), options)
    assert found.options.plan == block
    assert 25 < found.options.notes["psnr_db_of_examples"] < 99
    with pytest.raises(InputError, match=r"99\.9 dB is not kept with every layer"):
        searched(Budget(psnr_db=99.9), options)  # the audio tokens' weights are rounded, too
    assert {path.name for path in work.iterdir()} == {"sensitivity"}
