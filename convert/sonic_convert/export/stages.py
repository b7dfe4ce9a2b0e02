"""The stages of a conversion for one submodel: export, simplify, fuse, check, measure memory.

Each stage writes to its own folder under the work directory, and is skipped if that folder was made from the
same inputs (by the digest of everything that the stage reads), so an interrupted conversion resumes where it
stopped.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import onnxscript
import onnxsim
import torch

from sonic.engines.onnx import open_session, session_options
from sonic.errors import InputError
from sonic.storage.files import whole_or_nothing
from sonic.verification.compare import Difference, compare
from sonic_calibration.graphs.stored_graph import read_tensor, tensor_bytes
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.export import fusion, measured, work
from sonic_convert.export.dimensions import read_dimensions
from sonic_convert.export.submodels import Submodel, TensorSpec

OPSET = 18
STAGE_VERSION = 11  # raise it when a change of the code changes a stage's output
EXTERNAL_DATA_BYTES = 1_800_000_000  # protobuf's limit is 2 GB
GRAPH = "model.onnx"
_RESULT = "stage.json"
# It would turn a linear map of (batch, positions, channels) into a Gemm between reshapes to computed shapes.
_SKIPPED_OPTIMIZERS = ["fuse_matmul_add_bias_into_gemm_batched"]


@dataclass(frozen=True)
class StageResult:
    """The outcome of a stage.

    Attributes:
        digest: of everything the stage read.
        seconds: how long it took.
        peak_bytes: the process's peak resident memory so far.
        facts: numbers to report, such as node counts.
    """

    digest: str
    seconds: float
    peak_bytes: int
    facts: dict[str, Any]


def export(submodel: Submodel, checkpoint: Checkpoint, folder: Path, source_digest: str) -> StageResult:
    """Trace a submodel to ONNX, and save PyTorch's outputs for its example inputs.

    The TorchScript exporter is used: the newer one needs minutes of symbolic shape solving for a UNet
    of this depth and gives the same numbers.
    """

    def produce(target: Path) -> dict[str, Any]:
        module = submodel.build(checkpoint)
        dimensions = read_dimensions(checkpoint)
        inputs, outputs = submodel.inputs(dimensions), submodel.outputs(dimensions)
        examples = [submodel.example(dimensions, sizes, seed) for seed, sizes in enumerate(submodel.sizes)]
        with torch.inference_mode():
            for index, example in enumerate(examples):
                result = module(*example.values())
                results = result if isinstance(result, tuple) else (result,)
                golden = {f"in.{name}": value.numpy() for name, value in example.items()}
                for spec, value in zip(outputs, results, strict=True):
                    golden[f"out.{spec.name}"] = value.numpy()
                np.savez(target / f"golden_{index}.npz", **golden)  # type: ignore[arg-type]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns about every constant shape
            torch.onnx.export(
                module,
                tuple(examples[0].values()),
                str(target / GRAPH),
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                dynamic_axes={spec.name: spec.dynamic_axes for spec in (*inputs, *outputs)},
                opset_version=OPSET,
                dynamo=False,
            )
        name_weights(target / GRAPH, module)
        return {"nodes": _node_count(target / GRAPH), "flop": work.count_flop(submodel, module, dimensions)}

    key = [source_digest, torch.__version__, str(OPSET), submodel.name]
    return run_stage(folder, key, produce)


def name_weights(graph: Path, module: torch.nn.Module) -> None:
    """Name the weights of linear maps without bias after their layers, in place.

    The exporter transposes them and names them ``onnx::MatMul_123``; here they become
    ``LAYER.weight.transposed``, so that a layer's precision can be chosen by its name.
    """
    model = onnx.load(str(graph), load_external_data=False)
    layers: dict[Any, list[tuple[str, np.ndarray]]] = {}
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 2:
            array = tensor.numpy().T
            layers.setdefault((array.shape, array[0].tobytes()), []).append((name, array))
    renamed: dict[str, str] = {}
    for stored in model.graph.initializer:
        if not stored.name.startswith("onnx::MatMul") or len(stored.dims) != 2:
            continue
        values = read_tensor(stored, graph.parent)
        for name, array in layers.get((values.shape, values[0].tobytes()), ()):
            new = f"{name}.transposed"
            if new not in renamed.values() and np.array_equal(values, array):
                renamed[stored.name] = stored.name = new
                break
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    onnx.save(model, str(graph))


def simplify(outputs: tuple[TensorSpec, ...], exported: Path, folder: Path, digest: str) -> StageResult:
    """Fold constants and shapes with onnxsim; large weights (near 2 GB) go to one file beside the graph.

    The graph's outputs get the shapes of `outputs`, as the exporter makes up names for derived sizes.
    """

    def produce(target: Path) -> dict[str, Any]:
        model, _ = onnxsim.simplify(str(exported / GRAPH), skipped_optimizers=_SKIPPED_OPTIMIZERS)
        for value, spec in zip(model.graph.output, outputs, strict=True):
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(spec.name, kind, spec.shape))
        size = sum(tensor_bytes(tensor) for tensor in model.graph.initializer)
        onnx.save(
            model,
            str(target / GRAPH),
            save_as_external_data=size > EXTERNAL_DATA_BYTES,
            all_tensors_to_one_file=True,
            location=f"{GRAPH}.data",
            size_threshold=1024,
        )
        return {"nodes": len(model.graph.node), "bytes": size}

    return run_stage(folder, [digest, onnxsim.__version__, onnx.__version__], produce)


def fuse(simplified: Path, folder: Path, digest: str) -> StageResult:
    """Use ONNX Runtime's own operators where it has them; see :mod:`sonic_convert.export.fusion`."""

    def produce(target: Path) -> dict[str, Any]:
        model = onnx_ir.load(simplified / GRAPH)
        attentions = fusion.fuse(model)
        external = f"{GRAPH}.data" if (simplified / f"{GRAPH}.data").exists() else None
        onnx_ir.save(model, target / GRAPH, external_data=external, size_threshold_bytes=1024)
        return {"nodes": _node_count(target / GRAPH), "attentions": attentions}

    return run_stage(folder, [digest, onnx_ir.__version__, onnxscript.__version__], produce)


def check(submodel: Submodel, exported: Path, fused: Path, folder: Path, digest: str) -> StageResult:
    """Run ONNX's checker, then compare ONNX Runtime with PyTorch on the example inputs.

    Raises:
        InputError: a difference exceeds the tolerance of the table.
    """

    def produce(target: Path) -> dict[str, Any]:
        onnx.checker.check_model(str(fused / GRAPH), full_check=False)
        session = open_session(fused / GRAPH, session_options())
        worst: Difference | None = None
        for path in sorted(exported.glob("golden_*.npz")):
            golden = np.load(path, allow_pickle=False)
            feeds = {key[3:]: golden[key] for key in golden if key.startswith("in.")}
            names = [output.name for output in session.get_outputs()]
            for name, array in zip(names, session.run(names, feeds), strict=True):
                difference = compare(array, golden[f"out.{name}"])
                if worst is None or not difference.relative_l2 <= worst.relative_l2:
                    worst = difference
        assert worst is not None
        if not worst.relative_l2 <= submodel.tolerance:
            raise InputError(
                f"the exported '{submodel.name}' differs from PyTorch by {worst.relative_l2:.2e} "
                f"(relative L2), more than {submodel.tolerance:g}; report this with the checkpoint's "
                "config.json files"
            )
        return asdict(worst)

    return run_stage(folder, [digest, onnxruntime.__version__, str(submodel.tolerance)], produce)


def measure_memory(
    submodel: Submodel, inputs: Sequence[work.NamedShape], graph: Path, folder: Path, digest: str
) -> StageResult:
    """Measure the memory of the loaded graph and of its calls; see :mod:`sonic_convert.export.work`.

    What was measured before is quoted; see :mod:`sonic_convert.export.measured`.
    """
    structure = measured.structure_of(graph / GRAPH, submodel.memory_sizes)
    known = measured.known(structure)

    def produce(target: Path) -> dict[str, Any]:
        if known is not None:
            return known
        weights, activations = work.measure_memory(graph / GRAPH, submodel, inputs)
        facts = {"weight_bytes": weights, "activation_bytes": activations, "structure": structure}
        measured.remember(structure, facts)
        return facts

    key = [digest, onnxruntime.__version__, *([] if known is None else [json.dumps(known, sort_keys=True)])]
    return run_stage(folder, key, produce)


def run_stage(folder: Path, key: list[str], produce: Callable[[Path], dict[str, Any]]) -> StageResult:
    """Let `produce` fill a new folder that then replaces `folder`; reuse `folder` if it has the same key.

    Raises:
        OutputError: the folder cannot be written.
    """
    digest = hashlib.sha256("\n".join([str(STAGE_VERSION), *key]).encode()).hexdigest()
    done = read_result(folder)
    if done is not None and done.digest == digest:
        return done
    started = time.monotonic()
    # A fixed name: a stage that was killed leaves gigabytes, which the next run has to find.
    with whole_or_nothing(folder, folder.with_name(f".{folder.name}.partial")) as partial:
        partial.mkdir(parents=True)
        facts = produce(partial)
        result = StageResult(digest, time.monotonic() - started, peak_memory_bytes(), facts)
        (partial / _RESULT).write_text(json.dumps(asdict(result), indent=1))
    return result


def read_result(folder: Path) -> StageResult | None:
    """The result of a finished stage, or None if there is none."""
    try:
        return StageResult(**json.loads((folder / _RESULT).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def peak_memory_bytes() -> int:
    """The peak resident memory of this process so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _node_count(path: Path) -> int:
    return len(onnx.load(str(path), load_external_data=False).graph.node)
