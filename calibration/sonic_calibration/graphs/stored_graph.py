"""Reads and writes the weights of an ONNX graph one tensor at a time.

    graph = StoredGraph.open(Path("bundle/unet/model.onnx"))
    array = graph.load("unet.conv_in.weight")

Rewriting a 6 GB graph takes no more memory than its largest tensor: everything else stays on disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, external_data_helper, numpy_helper

from sonic.engines.onnx import session_options

EXTERNAL_BYTES = 1024  # smaller tensors stay in the graph, where ONNX's shape inference reads them


@dataclass(frozen=True)
class StoredGraph:
    """A graph whose weights are still on disk.

    Attributes:
        path: the graph's file.
        model: the graph; large weights are references to a file in the same folder.
        initializers: the weights by name, as they stand in `model`.
    """

    path: Path
    model: onnx.ModelProto
    initializers: dict[str, TensorProto]

    @classmethod
    def open(cls, path: Path) -> StoredGraph:
        """Read a graph without its external weights."""
        model = onnx.load(str(path), load_external_data=False)
        return cls(path, model, {tensor.name: tensor for tensor in model.graph.initializer})

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return tuple(self.initializers[name].dims)

    def load(self, name: str) -> np.ndarray:
        """Read one weight; an array of the weight's shape and dtype."""
        return read_tensor(self.initializers[name], self.path.parent)


def read_tensor(tensor: TensorProto, folder: Path) -> np.ndarray:
    """A tensor's values, read from the file in `folder` if the tensor is stored externally."""
    if external_data_helper.uses_external_data(tensor):
        tensor, stored = TensorProto(), tensor
        tensor.CopyFrom(stored)
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    return np.asarray(numpy_helper.to_array(tensor))


def tensor_bytes(tensor: TensorProto) -> int:
    """The size of a tensor's values in bytes, whether they are in the graph or in an external file."""
    width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * width


class WeightKeeper:
    """Collects the initializers of a graph that stays in memory; unchanged ones stay external references.

    `open_with_external_weights` opens a session that resolves these references.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, TensorProto] = {}

    def add(self, name: str, array: np.ndarray) -> str:
        """Add a new weight, unless one of this name was added before; returns its name."""
        if name not in self.tensors:
            self.tensors[name] = self._tensor(name, np.asarray(array, order="C"))
        return name

    def _tensor(self, name: str, array: np.ndarray) -> TensorProto:
        return numpy_helper.from_array(array, name)

    def keep(self, graph: StoredGraph, name: str) -> None:
        """Add a weight of a graph unchanged."""
        self.tensors[name] = graph.initializers[name]


def open_with_external_weights(model: onnx.ModelProto, folder: Path) -> onnxruntime.InferenceSession:
    """Open a session for a model in memory whose external weights are in files of `folder`."""
    options = session_options()
    entry = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(entry, str(folder.absolute()))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class WeightWriter(WeightKeeper):
    """Collects the initializers of a graph to be saved, and writes large ones to a file in the same folder.

    A context manager: leaving the ``with`` block closes the file.

    Args:
        graph: path of the new graph; the weights' file has the same name with ``.data`` appended.
        external: True to store large weights in that file, False to keep all of them in the graph.
    """

    def __init__(self, graph: Path, external: bool) -> None:
        super().__init__()
        self._path = graph.with_name(f"{graph.name}.data")
        self._external = external
        self._file: IO[bytes] | None = None

    def keep(self, graph: StoredGraph, name: str) -> None:
        """Add a copy of another graph's weight."""
        self.add(name, graph.load(name))

    def _tensor(self, name: str, array: np.ndarray) -> TensorProto:
        tensor = super()._tensor(name, array)
        if not self._external or array.nbytes < EXTERNAL_BYTES:
            return tensor
        if self._file is None:
            self._file = self._path.open("wb")
        offset = self._file.tell()
        self._file.write(tensor.raw_data)
        external_data_helper.set_external_data(tensor, self._path.name, offset, array.nbytes)
        tensor.ClearField("raw_data")
        return tensor

    def __enter__(self) -> WeightWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()


def replace_graph(
    model: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    initializers: Iterable[TensorProto],
) -> onnx.ModelProto:
    """Copy a model with other nodes and initializers; the shapes of intermediate tensors are dropped.

    Inputs, outputs and metadata stay the same, and `model` itself is left unchanged.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for field in ("node", "initializer", "value_info"):
        changed.graph.ClearField(field)
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(initializers)
    return changed
