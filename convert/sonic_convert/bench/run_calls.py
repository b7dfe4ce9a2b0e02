"""Runs on the emulated processor: calls a submodel a number of times, with either engine.

python run_calls.py onnxruntime model.onnx inputs.npz CALLS
python run_calls.py tvm program.json inputs.npz CALLS libsonic_acl.so
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


def main(engine: str, graph: str, inputs: str, calls: str, bridge: str = "") -> None:
    """Call it, and print the sum of absolute outputs, which shows that the engines compute the same."""
    with np.load(inputs) as stored:
        feeds = {name: stored[name] for name in stored}
    outputs: dict[str, np.ndarray] = {}
    session = _onnxruntime(graph) if engine == "onnxruntime" else _tvm(graph, bridge)
    for _ in range(int(calls)):
        outputs = session.run(feeds)
    print(
        "sum of magnitudes:", sum(float(np.abs(output).sum(dtype=np.float64)) for output in outputs.values())
    )


def _onnxruntime(graph: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return SimpleNamespace(run=lambda feeds: dict(zip(names, session.run(names, feeds), strict=True)))


def _tvm(program: str, bridge: str) -> Any:
    from sonic.engines.tvm import TvmSession, load_libraries, set_threads
    from sonic.engines.tvm_files import ProgramFolder

    load_libraries(Path(bridge), Path(bridge))
    set_threads(1)
    return TvmSession("submodel", ProgramFolder(Path(program).parent))


if __name__ == "__main__":
    main(*sys.argv[1:])
