"""A calibrated small bundle, what is made from it, and graphs made by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sonic.bundle.bundle import Bundle
from sonic.bundle.store import open_bundle
from sonic.options import GenerationOptions
from sonic_calibration.graphs.layers import Layer, find_layers
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_calibration.ranges.calibration import Calibration
from sonic_calibration.ranges.statistics import TensorStatistics
from sonic_calibration.recording.examples import Example, read_examples
from sonic_calibration.recording.recordings import RecordingOptions, Recordings
from sonic_convert.quantization.plan import preset
from sonic_convert.quantization.qdq import QdqOptions, open_quantized
from sonic_convert.quantization.quantize import QuantizationOptions, calibrate_bundle, quantize_bundle

RECORDING = RecordingOptions(calls=2, clip=GenerationOptions(min_resolution=64, inference_steps=2))


@dataclass(frozen=True)
class HandMade:
    """A graph in memory with the input x."""

    graph: StoredGraph

    @property
    def layers(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in find_layers(self.graph)}

    def values(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """All tensors that follow from x."""
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        names = [name for node in model.graph.node for name in node.output]
        model.graph.ClearField("output")
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return {"x": x} | dict(zip(names, session_of(model).run(names, {"x": x}), strict=True))

    def seen(self, *calls: np.ndarray) -> dict[str, TensorStatistics]:
        """The statistics of every layer's tensors."""
        found: dict[str, TensorStatistics] = {}
        axes = {
            name: layer.channel_axis
            for layer in self.layers.values()
            for use in layer.uses
            for name in (use.activation, use.output)
        }
        for values in map(self.values, calls):
            for name, axis in axes.items():
                found.setdefault(name, TensorStatistics()).update(values[name], axis)
        return found

    def quantized(
        self,
        x: np.ndarray,
        precisions: str | Mapping[str, str] = "int8",
        seen: Mapping[str, TensorStatistics] | None = None,
        **options: object,
    ) -> dict[str, np.ndarray]:
        """The results for x of the graph in another precision, calibrated with x unless told otherwise."""
        if isinstance(precisions, str):
            precisions = dict.fromkeys(self.layers, precisions)
        seen = self.seen(x) if seen is None else seen
        session = open_quantized(self.graph, precisions, seen, QdqOptions(**options))  # type: ignore[arg-type]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"x": x}), strict=True))

    def saved(self, path: Path, external: bool = False) -> Path:
        """The graph as a file, its large weights in one beside it where wanted."""
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        onnx.save(model, str(path), save_as_external_data=external, location=f"{path.name}.data")
        return path


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def _by_hand(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    shape: Sequence[int],
    outputs: Sequence[str] = ("y",),
) -> HandMade:
    tensors = {name: numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in weights.items()}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        tensors.values(),
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return HandMade(StoredGraph(Path("by-hand.onnx"), model, tensors))


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., HandMade]:
    """Makes a graph from nodes, weights, the shape of x and the names of the results."""
    return _by_hand


@pytest.fixture(scope="session")
def relative_l2() -> Callable[[np.ndarray, np.ndarray], float]:
    """The norm of a difference over that of what was expected."""
    return lambda found, expected: float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory, portrait: Path, short_wav: Path) -> Path:
    """A folder with one example."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copyfile(portrait, folder / "one.png")
    shutil.copyfile(short_wav, folder / "one.wav")
    return folder


@pytest.fixture(scope="session")
def clips(examples: Path) -> list[Example]:
    """The one example."""
    return read_examples(examples)


@pytest.fixture(scope="session")
def bundle(small) -> Bundle:
    """The small one, opened."""
    return open_bundle(small.bundle)


@pytest.fixture(scope="session")
def calibrated(small, clips: list[Example], make_once: Callable[..., Path]) -> tuple[Calibration, Recordings]:
    """The small bundle's calibration for the preset "int8", and what it was collected from."""

    def collect(folder: Path) -> tuple[Calibration, Recordings]:
        return calibrate_bundle(
            small.bundle, clips, RECORDING, folder / "small.npz", preset("int8").quantized, folder / "work"
        )

    return collect(make_once("calibration", collect))  # the second call reads what the first one wrote


@pytest.fixture(scope="session")
def calibration(calibrated: tuple[Calibration, Recordings]) -> Calibration:
    return calibrated[0]


@pytest.fixture(scope="session")
def recordings(calibrated: tuple[Calibration, Recordings]) -> Recordings:
    return calibrated[1]


@pytest.fixture(scope="session")
def calibration_file(calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "small.npz"
    calibration.save(path)
    return path


@pytest.fixture(scope="session")
def int8(small, calibration: Calibration, make_once: Callable[..., Path]) -> Path:
    """The small bundle in the preset "int8"; to be read only."""
    options = QuantizationOptions(preset("int8"))

    def quantize(folder: Path) -> None:
        quantize_bundle(small.bundle, folder / "int8", options, calibration)

    return make_once("int8", quantize) / "int8"


@pytest.fixture(scope="session")
def fp16(small, make_once: Callable[..., Path]) -> Path:
    """The small bundle in the preset "fp16"; to be read only."""
    options = QuantizationOptions(preset("fp16"))
    return make_once("fp16", lambda folder: quantize_bundle(small.bundle, folder / "fp16", options)) / "fp16"
