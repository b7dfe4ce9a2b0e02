"""Who makes and who reads tensors."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.helper import make_node

from sonic_convert.quantization.topology import Topology


@pytest.fixture(scope="module")
def topology(by_hand) -> Topology:
    """Two branches of x: a product whose bias is added, and one that is read twice and a result."""
    nodes = [
        make_node("MatMul", ["x", "a"], ["product"], "product"),
        make_node("Add", ["bias", "product"], ["sum"], "sum"),
        make_node("Relu", ["x"], ["other"], "other"),
        make_node("Mul", ["other", "other"], ["square"], "square"),
        make_node("Add", ["square", "matrix"], ["moved"], "moved"),
        make_node("Add", ["sum", "moved"], ["y"], "y"),
    ]
    weights = {"a": np.ones((4, 4)), "bias": np.ones(4), "matrix": np.ones((1, 4))}
    return Topology(by_hand(nodes, weights, [2, 4], ["y", "other"]).graph)


def test_producers_and_readers_are_found(topology: Topology) -> None:
    assert topology.producers["sum"].name == "sum"
    assert "x" not in topology.producers and "a" not in topology.producers
    assert [node.name for node in topology.consumers["x"]] == ["product", "other"]
    assert [node.name for node in topology.consumers["other"]] == ["square"]


def test_a_tensor_with_more_than_one_purpose_has_no_only_reader(topology: Topology) -> None:
    reader = topology.only_reader("product")
    assert reader is not None and reader.name == "sum"
    assert topology.only_reader("x") is None  # read twice
    assert topology.only_reader("other") is None  # a result
    assert topology.only_reader("y") is None  # not read


def test_an_added_vector_is_a_bias_and_a_matrix_is_none(topology: Topology) -> None:
    assert topology.is_vector("bias") and not topology.is_vector("matrix") and not topology.is_vector("x")
    assert topology.added_bias("product") == "bias"
    assert topology.added_bias("square") is None
    assert topology.added_bias("sum") is None
    assert topology.added_bias("x") is None
