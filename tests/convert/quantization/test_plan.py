"""Which precision every layer gets."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest import SUBMODEL_NAMES
from sonic.errors import InputError
from sonic_calibration.graphs.layers import find_layers
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_convert.quantization.plan import (
    LAYER_PRECISIONS,
    PRESETS,
    PrecisionPlan,
    find_plan,
    preset,
    read_plan,
)

PATTERNS = st.lists(
    st.tuples(st.sampled_from(["*", "a*", "*.b", "a.b", "a.?", "c"]), st.sampled_from(LAYER_PRECISIONS)),
    max_size=5,
)
LAYERS = st.sampled_from(["a.b", "a.c", "c", "c.b", "a"])
NAMES = st.text("ab.[]#!-0", min_size=1, max_size=8)


def file_of(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_a_precision_for_every_layer(name: str, bundle: Bundle) -> None:
    plan = preset(name)
    assert plan.name == name and set(plan.rules) <= set(SUBMODEL_NAMES)
    for submodel in SUBMODEL_NAMES:
        layers = find_layers(StoredGraph.open(bundle.graph_path(submodel)))
        precisions = [plan.of(submodel, layer.name) for layer in layers]
        if name == "int8":
            assert set(precisions) <= {"int8", "weights8", "fp32"}
        else:
            assert set(precisions) == {name.removesuffix("-max")}
        common = max(set(precisions), key=precisions.count)
        assert plan.main_precision(submodel) == common


def test_int8_computes_with_integers_where_the_time_goes() -> None:
    plan = preset("int8")
    assert plan.quantized == ("vae_decoder", "unet")
    assert plan.of("unet", "unet.conv_in") == plan.of("unet", "unet.time_embedding.linear_1") == "fp32"
    assert plan.of("unet", "unet.mid_block.resnets.0.conv1") == "int8"
    assert plan.of("audio_encoder", "conv1") == "weights8"
    assert plan.of("face_detector", "any") == "fp32"


def test_only_rounded_activations_need_a_calibration() -> None:
    assert preset("fp32").quantized == preset("fp16").quantized == ()
    assert set(preset("int8-max").quantized) == set(preset("fp16-native").quantized) == set(SUBMODEL_NAMES)


@given(PATTERNS, LAYERS)
def test_the_first_rule_that_matches_counts(rules: list[tuple[str, str]], layer: str) -> None:
    matching = [precision for pattern, precision in rules if fnmatchcase(layer, pattern)]
    plan = PrecisionPlan("plan", {"unet": tuple(rules)})
    assert plan.of("unet", layer) == (matching[0] if matching else "fp32")
    assert plan.of("vae_decoder", layer) == "fp32"


@given(st.lists(NAMES, min_size=1, max_size=4), NAMES, st.sampled_from(LAYER_PRECISIONS))
def test_exceptions_are_of_these_layers_and_no_others(layers: list[str], other: str, precision: str) -> None:
    plan = PrecisionPlan("plan", {"unet": (("*", "int8"),), "vae_decoder": (("*", "int8"),)})
    changed = plan.with_exceptions("unet", layers, precision)
    assert [changed.of("unet", layer) for layer in layers] == [precision] * len(layers)
    assert other in layers or changed.of("unet", other) == "int8"
    assert all(changed.of("vae_decoder", layer) == "int8" for layer in layers)
    assert all(plan.of("unet", layer) == "int8" for layer in layers)


def test_brackets_in_a_layers_name_are_no_pattern() -> None:
    plan = preset("int8").with_exceptions("unet", ["blocks[0].conv"], "fp16")
    assert plan.of("unet", "blocks[0].conv") == "fp16"
    assert plan.of("unet", "blocks0.conv") == "int8"


def test_a_later_exception_counts_first() -> None:
    plan = preset("int8").with_exceptions("unet", ["a"], "fp16").with_exceptions("unet", ["a"], "fp32")
    assert plan.of("unet", "a") == "fp32"


def test_a_file_has_rules_in_its_order(tmp_path: Path) -> None:
    text = '[unet]\n"unet.conv_in" = "fp32"\n"*_in" = "fp16"\n"*" = "int8"\n[audio2token]\n"*" = "weights8"\n'
    path = file_of(tmp_path, text)
    plan = find_plan(str(path))
    assert plan == read_plan(path)
    assert plan.name == "mine"
    assert [plan.of("unet", name) for name in ("unet.conv_in", "b_in", "c")] == ["fp32", "fp16", "int8"]
    assert plan.of("audio2token", "proj1") == "weights8"
    assert plan.of("vae_decoder", "conv1") == "fp32"
    assert plan.quantized == ("unet",)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[unet\n", "the precisions cannot be read"),
        ('[decoder]\n"*" = "int8"\n', r"\[decoder\] is no submodel"),
        ('[unet]\n"*" = "int4"\n', r"'\*' of \[unet\] is 'int4'.*weights8"),
        ('[unet]\n"*" = 8\n', r"'\*' of \[unet\] is 8"),
        ('[unet]\nconv_in.a = "fp32"\n', r"'conv_in' of \[unet\] is \{"),
    ],
)
def test_a_file_with_a_mistake_names_it(tmp_path: Path, text: str, named: str) -> None:
    path = file_of(tmp_path, text)
    with pytest.raises(InputError, match=named) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_a_submodel_without_a_table_is_not_called_unknown(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_plan(file_of(tmp_path, 'unet = "int8"\n'))
    assert "[unet] is no submodel" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.toml.*No such file"):
        find_plan(str(tmp_path / "missing.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"bytes\.toml.*cannot be read"):
        find_plan(str(tmp_path / "bytes.toml"))


@pytest.mark.parametrize("name", ["int4", "", "INT8", "plan.yaml"])
def test_an_unknown_preset_is_named_with_those_that_exist(name: str) -> None:
    with pytest.raises(InputError, match=f"{name!r}.*{', '.join(PRESETS)}"):
        find_plan(name)
