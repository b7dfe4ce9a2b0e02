"""Stand-ins for the bridge to the Arm Compute Library, and graphs that are compiled and run with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphs
import onnxruntime
import pytest
import torch
import tvm
import tvm_ffi
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional
from tvm import relax

from sonic_convert.compilation.build import build
from sonic_convert.compilation.lowering import Lowered, lower


def pytest_runtest_setup() -> None:
    """The same random numbers for every test, whatever ran before it."""
    onnx_graphs.RANDOM = np.random.default_rng(1)


#: This machine. LLVM's optimisations would take longer than what they make faster.
HERE = tvm.target.Target({"kind": "llvm", "opt-level": 0})


def _values(tensor: Any, dtype: torch.dtype, *sizes: int) -> torch.Tensor:
    """A tensor's memory, which must be dense and of those sizes (-1: any, but 0), as the bridge demands."""
    values = torch.from_dlpack(tensor)
    assert values.dtype == dtype and values.is_contiguous(), (values.dtype, values.stride())
    assert len(values.shape) == len(sizes), (values.shape, sizes)
    for size, wanted in zip(values.shape, sizes, strict=True):
        assert size > 0 and wanted in (-1, size), (values.shape, sizes)
    return values


@dataclass
class Library:
    """What the bridge registers as ``sonic.acl.*``, in PyTorch.

    It is as strict about arguments, and keeps the constants of the first call under a layer's key as well:
    layers that share a key get each other's.
    """

    kept: dict[str, dict[str, tuple[torch.Tensor, ...]]] = field(default_factory=dict)

    def functions(self) -> dict[str, Callable[..., None]]:
        """The functions by the names that programs know."""
        return {
            "sonic.acl.convolution2d": self.convolution2d,
            "sonic.acl.winograd_convolution2d": self.winograd_convolution2d,
            "sonic.acl.linear": self.linear,
            "sonic.acl.batch_matmul": self.batch_matmul,
            "sonic.acl.attention": self.attention,
            "sonic.acl.softmax": self.softmax,
            "sonic.acl.quantized_convolution2d": self.quantized_convolution2d,
            "sonic.acl.quantized_convolution2d_float": self.quantized_convolution2d_float,
            "sonic.acl.quantized_linear": self.quantized_linear,
            "sonic.acl.quantized_linear_float": self.quantized_linear_float,
            "sonic.acl.forget": self.forget,
        }

    def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.kept.pop(str(key), None)

    def convolution2d(self, x: Any, weight: Any, bias: Any, key: str, *geometry: Any) -> None:
        *numbers, y = geometry
        batch, height, width, channels = torch.from_dlpack(x).shape
        weights = _values(weight, torch.float32, -1, -1, -1, channels)
        outputs = len(weights)
        (weights,) = self._keep(key, f"convolution {numbers} {height} {width}", weights)
        added = _values(bias, torch.float32, outputs)
        result = _convolve(_values(x, torch.float32, -1, -1, -1, -1), weights, numbers) + added
        _values(y, torch.float32, batch, *result.shape[1:3], outputs).copy_(result)

    def winograd_convolution2d(self, x: Any, weight: Any, bias: Any, key: str, *geometry: Any) -> None:
        assert torch.from_dlpack(weight).shape[1:3] == (3, 3) and geometry[:2] == (1, 1), geometry
        assert max(geometry[2:6]) <= 3, geometry
        self.convolution2d(x, weight, bias, key, *geometry)

    def linear(self, x: Any, weight: Any, bias: Any, key: str, y: Any) -> None:
        rows = _values(x, torch.float32, -1, -1)
        matrix = _values(weight, torch.float32, rows.shape[1], -1)
        (matrix,) = self._keep(key, "linear", matrix)
        result = rows @ matrix + _values(bias, torch.float32, matrix.shape[1])
        _values(y, torch.float32, *result.shape).copy_(result)

    def batch_matmul(self, a: Any, b: Any, transposed: int, y: Any) -> None:
        left = _values(a, torch.float32, -1, -1, -1)
        count, _, depth = left.shape
        right = _values(b, torch.float32, count, *((-1, depth) if transposed else (depth, -1)))
        result = left @ (right.mT if transposed else right)
        _values(y, torch.float32, *result.shape).copy_(result)

    def attention(self, q: Any, k: Any, v: Any, heads: int, scale: float, y: Any) -> None:
        queries = _values(q, torch.float32, -1, -1, -1)
        keys = _values(k, torch.float32, len(queries), -1, queries.shape[2])
        both = (queries, keys, _values(v, torch.float32, *keys.shape))
        query, key, value = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in both)
        assert scale > 0
        weights = torch.softmax(query @ key.mT * scale, -1)
        result = (weights @ value).transpose(1, 2).flatten(2)
        _values(y, torch.float32, *queries.shape).copy_(result)

    def softmax(self, x: Any, y: Any) -> None:
        rows = _values(x, torch.float32, -1, -1)
        _values(y, torch.float32, *rows.shape).copy_(torch.softmax(rows, 1))

    def quantized_convolution2d(
        self, x: Any, weight: Any, scales: Any, bias: Any, key: str, scale: float, zero: int,
        scale_after: float, zero_after: int, *geometry: Any,
    ) -> None:  # fmt: skip
        *numbers, y = geometry
        real = self._convolved(x, weight, scales, bias, key, scale, zero, numbers)
        _values(y, torch.int8, *real.shape).copy_(_rounded(real, scale_after, zero_after))

    def quantized_convolution2d_float(
        self, x: Any, weight: Any, scales: Any, bias: Any, key: str, scale: float, zero: int, *geometry: Any
    ) -> None:
        *numbers, y = geometry
        real = self._convolved(x, weight, scales, bias, key, scale, zero, numbers)
        _values(y, torch.float32, *real.shape).copy_(real)

    def quantized_linear(
        self, x: Any, weight: Any, scales: Any, bias: Any, key: str, scale: float, zero: int,
        scale_after: float, zero_after: int, y: Any,
    ) -> None:  # fmt: skip
        real = self._multiplied(x, weight, scales, bias, key, scale, zero)
        _values(y, torch.int8, *real.shape).copy_(_rounded(real, scale_after, zero_after))

    def quantized_linear_float(
        self, x: Any, weight: Any, scales: Any, bias: Any, key: str, scale: float, zero: int, y: Any
    ) -> None:
        real = self._multiplied(x, weight, scales, bias, key, scale, zero)
        _values(y, torch.float32, *real.shape).copy_(real)

    def _keep(self, key: str, configuration: str, *constants: torch.Tensor) -> tuple[torch.Tensor, ...]:
        copies = tuple(constant.clone() for constant in constants)
        return self.kept.setdefault(key, {}).setdefault(configuration, copies)

    def _convolved(
        self, x: Any, weight: Any, scales: Any, bias: Any, key: str, scale: float, zero: int,
        numbers: list[Any],
    ) -> torch.Tensor:  # fmt: skip
        integers = _values(x, torch.int8, -1, -1, -1, -1)
        weights = _values(weight, torch.int8, -1, -1, -1, integers.shape[3])
        weights, steps, offsets = self._layer(f"{scale} {zero} {numbers}", weights, scales, bias, key, 0)
        sums = _convolve(integers.double() - zero, weights.double(), numbers)
        return (sums + offsets) * (steps.double() * scale)

    def _multiplied(
        self, x: Any, weight: Any, scales: Any, bias: Any, key: str, scale: float, zero: int
    ) -> torch.Tensor:
        integers = _values(x, torch.int8, -1, -1)
        matrix = _values(weight, torch.int8, integers.shape[1], -1)
        matrix, steps, offsets = self._layer(f"{scale} {zero}", matrix, scales, bias, key, 1)
        return ((integers.double() - zero) @ matrix.double() + offsets) * (steps.double() * scale)

    def _layer(
        self, configuration: str, weight: torch.Tensor, scales: Any, bias: Any, key: str, axis: int
    ) -> tuple[torch.Tensor, ...]:
        outputs = weight.shape[axis]
        steps, offsets = _values(scales, torch.float32, outputs), _values(bias, torch.int32, outputs)
        return self._keep(key, configuration, weight, steps, offsets)


def _convolve(x: torch.Tensor, weight: torch.Tensor, numbers: list[Any]) -> torch.Tensor:
    """Channels last; strides of rows and columns, then pads: top, left, bottom, right."""
    *strides, top, left, bottom, right = (int(number) for number in numbers)
    padded = functional.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom))
    result = functional.conv2d(padded, weight.permute(0, 3, 1, 2), None, strides)
    return result.permute(0, 2, 3, 1)


def _rounded(real: torch.Tensor, scale: float, zero: int) -> torch.Tensor:
    """Halves to the even side, as ONNX and the bridge round."""
    return torch.clamp(torch.round(real / scale) + zero, -128, 127).to(torch.int8)


@pytest.fixture(scope="session")
def library() -> Iterator[Library]:
    """The stand-ins, registered."""
    made = Library()
    for name, function in made.functions().items():
        tvm_ffi.register_global_func(name, function, override=True)
    yield made
    for name in made.functions():
        tvm_ffi.registry.remove_global_func(name)


@dataclass(frozen=True)
class Compiled:
    """A graph that was lowered, compiled for this machine and run."""

    lowered: Lowered
    results: dict[str, np.ndarray]

    @property
    def y(self) -> np.ndarray:
        """The result of that name."""
        return self.results["y"]

    @property
    def calls(self) -> dict[str, int]:
        """How often each function of the library is called."""
        return self.lowered.library_calls

    def count(self, operator: str) -> int:
        """How many of Relax's operators of a name are left when what nobody reads is gone."""
        found: list[str] = []

        def visit(expression: Any) -> None:
            if isinstance(expression, relax.Call) and isinstance(expression.op, tvm.ir.Op):
                found.append(expression.op.name)

        module = relax.transform.DeadCodeElimination()(self.lowered.module)
        relax.analysis.post_order_visit(module["main"], visit)
        return found.count(f"relax.{operator}")

    def has_program(self, name: str) -> bool:
        """Whether it has a loop nest of our own of this name."""
        return any(variable.name_hint == name for variable in self.lowered.module.get_global_vars())


@pytest.fixture(scope="session")
def run_compiled(library: Library) -> Callable[..., Compiled]:
    """Compiles a graph for inputs and runs it on them; the library may keep nothing under unknown keys."""

    def run(
        model: onnx.ModelProto,
        feeds: Mapping[str, np.ndarray],
        folder: Path = Path(),
        use_library: bool = True,
    ) -> Compiled:
        shapes = {name: array.shape for name, array in feeds.items()}
        lowered = lower(model, shapes, folder, use_library)
        machine = relax.VirtualMachine(build(lowered, HERE), tvm.cpu())
        arguments = [*(feeds[name] for name in lowered.inputs), *lowered.weights.values()]
        results = machine["main"](*map(tvm.runtime.tensor, arguments))
        library.forget(lowered.keys)
        assert not library.kept
        return Compiled(
            lowered, {n: array.numpy() for n, array in zip(lowered.outputs, results, strict=True)}
        )

    return run


@pytest.fixture(scope="session")
def graph_of() -> Callable[..., onnx.ModelProto]:
    """Makes a graph from nodes, constants, inputs and the names of the results."""

    def make(
        nodes: Sequence[onnx.NodeProto],
        weights: Mapping[str, np.ndarray],
        feeds: Mapping[str, np.ndarray],
        outputs: Sequence[str] = ("y",),
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            nodes,
            "graph",
            [_info(name, array) for name, array in feeds.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    return make


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    kind: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape)


@pytest.fixture(scope="session")
def expected_of() -> Callable[..., dict[str, np.ndarray]]:
    """What ONNX Runtime computes, node by node as the graph says."""

    def run(model: onnx.ModelProto | Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        session = onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run


@pytest.fixture(scope="session")
def agrees(
    run_compiled: Callable[..., Compiled],
    graph_of: Callable[..., onnx.ModelProto],
    expected_of: Callable[..., dict[str, np.ndarray]],
) -> Callable[..., Compiled]:
    """Compiles a graph and compares all its results with ONNX Runtime's.

    They may differ by the relative L2 `tolerance`, 0 being the same bits, or, where a `step` is given, by one
    step in a few places: where what is rounded lies between two.
    """

    def run(
        nodes: Sequence[onnx.NodeProto],
        weights: Mapping[str, np.ndarray],
        feeds: Mapping[str, np.ndarray],
        outputs: Sequence[str] = ("y",),
        tolerance: float = 1e-5,
        use_library: bool = True,
        step: float = 0,
    ) -> Compiled:
        model = graph_of(nodes, weights, feeds, outputs)
        compiled = run_compiled(model, feeds, use_library=use_library)
        for name, wanted in expected_of(model, feeds).items():
            found = compiled.results[name]
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), name
            if step:
                differences = np.abs(found.astype(np.float64) - wanted)
                assert differences.max() < 1.001 * step, name
                assert (differences > 0.5 * step).sum() <= max(1, 0.02 * differences.size), name
            elif tolerance:
                difference = np.linalg.norm(found.astype(np.float64) - wanted)
                assert difference <= tolerance * np.linalg.norm(wanted.astype(np.float64)), name
            else:
                np.testing.assert_array_equal(found, wanted, name)
        return compiled

    return run
