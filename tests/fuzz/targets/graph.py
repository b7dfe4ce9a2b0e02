"""An ONNX graph, as it is looked into before ONNX Runtime sees it."""

from __future__ import annotations

from sonic.engines.graph_check import check_graph
from sonic.errors import SonicError


def one(data: bytes) -> None:
    try:
        check_graph(data, "model.onnx", {"model.onnx.data": 1_000_000})
    except SonicError:
        return
