"""The engines by their names in a manifest; each is imported only when a bundle needs it."""

from __future__ import annotations

from collections.abc import Callable

from sonic.bundle.bundle import Bundle
from sonic.engines.base import Engine
from sonic.engines.checked import CheckedEngine
from sonic.errors import BundleError
from sonic.options import AUTOMATIC, RunOptions


def _onnxruntime(bundle: Bundle, run: RunOptions) -> Engine:
    from sonic.engines.onnx import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, run)


def _tvm(bundle: Bundle, run: RunOptions) -> Engine:
    from sonic.engines.tvm import TvmEngine

    return TvmEngine(bundle, run)


ENGINES: dict[str, Callable[[Bundle, RunOptions], Engine]] = {"onnxruntime": _onnxruntime, "tvm": _tvm}


def make_engine(bundle: Bundle, run: RunOptions = AUTOMATIC) -> Engine:
    """Make the engine that a bundle was made for.

    Raises:
        BundleError: this runtime does not have that engine, or cannot run the bundle.
        InputError: bfloat16 was asked for, but the engine or the processor does not support it.
    """
    name = bundle.manifest.engine
    if name not in ENGINES:
        raise BundleError(
            f"{bundle.directory} was made for the engine '{name}', but this runtime has "
            f"{', '.join(ENGINES)}; convert the checkpoint for one of them"
        )
    return CheckedEngine(ENGINES[name](bundle, run))
