"""What a graph may hold; and that a graph of any bytes is checked or refused, in time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sonic.bundle.store import PACKAGED_BUNDLES
from sonic.engines.graph_check import check_graph
from sonic.errors import BundleError

GRAPHS = sorted((PACKAGED_BUNDLES / "sonic-tiny").glob("*/model.onnx"))


def graph(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    return helper.make_model(helper.make_graph(list(nodes), "graph", [x], [y], list(weights)))


def external(**where: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in where.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


RELU = helper.make_node("Relu", ["x"], ["y"])


def refused(model: onnx.ModelProto, weights: dict[str, int] | None = None) -> str:
    with pytest.raises(BundleError) as caught:
        check_graph(model.SerializeToString(), "m.onnx", weights or {})
    message = str(caught.value)
    assert message.startswith("m.onnx ") and message.endswith("; convert the checkpoint again")
    return message


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.parent.name)
def test_graphs_of_the_converter_pass(path: Path) -> None:
    check_graph(path.read_bytes(), str(path), {})


@pytest.mark.parametrize(
    ("operator", "domain", "name"),
    [
        ("Loop", "", "'Loop'"),
        ("If", "ai.onnx", "'If'"),
        ("Relu", "ai.onnx.contrib", "'ai.onnx.contrib.Relu'"),
        ("EPContext", "com.microsoft", "'com.microsoft.EPContext'"),
        ("", "", "''"),
        ("X" * 5_000, "", "'XXX"),
    ],
)
def test_other_operators_are_named(operator: str, domain: str, name: str) -> None:
    message = refused(graph(RELU, helper.make_node(operator, ["x"], ["z"], domain=domain)))
    assert f"has the operator {name}" in message and len(message) < 200


def test_the_default_domain_has_two_names() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")
    check_graph(graph(node).SerializeToString(), "m.onnx", {})


def test_control_flow_hides_in_no_attribute() -> None:
    inner = graph(helper.make_node("Loop", ["x"], ["y"])).graph
    assert "control flow" in refused(graph(helper.make_node("Relu", ["x"], ["y"], body=inner)))
    assert "control flow" in refused(graph(helper.make_node("Relu", ["x"], ["y"], bodies=[inner, inner])))


def test_weights_are_in_the_files_that_are_listed() -> None:
    inside = external(location="model.onnx.data", offset="8", length="8")
    check_graph(graph(RELU, weights=(inside,)).SerializeToString(), "m.onnx", {"model.onnx.data": 16})
    assert "beyond the end of model.onnx.data" in refused(
        graph(RELU, weights=(inside,)), {"model.onnx.data": 15}
    )
    for location in ("/etc/passwd", "../model.onnx.data", "./model.onnx.data", "*/_ORT_MEM_ADDR_/*", ""):
        message = refused(graph(RELU, weights=(external(location=location),)), {"model.onnx.data": 16})
        assert f"has weights in {location!r}" in message
    for offset in ("-8", "a", "9" * 5_000):
        wrong = graph(RELU, weights=(external(location="model.onnx.data", offset=offset),))
        assert "beyond the end" in refused(wrong, {"model.onnx.data": 16})
    twice = external(location="model.onnx.data")
    twice.external_data.add(key="location", value="/etc/passwd")
    assert "states twice" in refused(graph(RELU, weights=(twice,)), {"model.onnx.data": 16})


def test_weights_in_attributes_count_too() -> None:
    constant = helper.make_node("Constant", [], ["c"], value=external(location="/etc/passwd"))
    assert "has weights in '/etc/passwd'" in refused(graph(RELU, constant))
    several = helper.make_node("Constant", [], ["c"])
    several.attribute.append(helper.make_attribute("values", [external(location="/etc/passwd")]))
    assert "has weights in '/etc/passwd'" in refused(graph(RELU, several))


def test_what_no_graph_of_ours_has() -> None:
    model = graph(RELU)
    model.functions.append(
        helper.make_function("local", "F", ["x"], ["y"], [RELU], [helper.make_opsetid("", 18)])
    )
    assert "defines functions" in refused(model)
    model = graph(RELU)
    model.training_info.add()
    assert "training" in refused(model)
    model = graph(RELU)
    model.graph.sparse_initializer.add()
    assert "sparse" in refused(model)
    assert "no ONNX model with one graph" in refused(onnx.ModelProto())


def test_a_second_graph_is_not_overlooked() -> None:
    """Readers merge a field that occurs twice, so that its operators would be run."""
    first, second = graph(RELU), graph(helper.make_node("Loop", ["x"], ["z"]))
    both = first.SerializeToString() + second.SerializeToString()
    assert [node.op_type for node in onnx.ModelProto.FromString(both).graph.node] == ["Relu", "Loop"]
    with pytest.raises(BundleError, match="Loop"):
        check_graph(both, "m.onnx", {})


def test_many_parts_end_in_time() -> None:
    model = graph(RELU)
    content = model.SerializeToString() + b"\x08\x08" * 20_000_000  # ir_version, again and again
    with pytest.raises(BundleError, match="more than 2,000,000 parts"):
        check_graph(content, "m.onnx", {})


SMALL = graph(
    RELU,
    helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(2, np.float32))),
    weights=(external(location="model.onnx.data", offset="0", length="8"),),
).SerializeToString()


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_graphs_pass_or_are_refused(changes: list[tuple[int, int]]) -> None:
    """Never another exception; and what passes, ONNX reads as the same operators and locations."""
    content = bytearray(SMALL)
    for position, value in changes:
        content[position] = value
    try:
        check_graph(bytes(content), "m.onnx", {"model.onnx.data": 8})
    except BundleError as error:
        assert "\n" not in str(error)
        return
    try:
        model = onnx.ModelProto.FromString(bytes(content))
    except Exception:  # what is no protobuf, ONNX Runtime does not read either
        return
    for node in model.graph.node:
        assert node.op_type in ("Relu", "Constant", "Elu", "Selu") and node.domain in ("", "ai.onnx")
    for tensor in model.graph.initializer:
        assert {e.value for e in tensor.external_data if e.key == "location"} <= {"model.onnx.data"}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(BundleError):
        check_graph(content, "m.onnx", {})


def test_onnx_runtime_would_have_opened_the_other_file(tmp_path: Path) -> None:
    """The check is needed: this version of ONNX Runtime is told by the graph which file to open."""
    (tmp_path / "secret").write_bytes(np.ones(2, np.float32).tobytes())
    add = helper.make_node("Add", ["x", "w"], ["y"])
    model = graph(add, weights=(external(location="secret", offset="0", length="8"),))
    model.ir_version, model.opset_import[0].version = 8, 18
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    assert session.run(None, {"x": np.zeros(2, np.float32)})[0].tolist() == [1, 1]
    assert "has weights in 'secret'" in refused(model, {"m.onnx.data": 8})


def test_no_onnx_is_needed() -> None:
    module = sys.modules["sonic.engines.graph_check"]
    assert not hasattr(module, "onnx")
