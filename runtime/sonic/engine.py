"""Running submodels: one small interface, so that another engine can take ONNX Runtime's place.

    engine = OnnxRuntimeEngine(bundle)
    with engine.open("image_encoder") as image_encoder:
        embedding = image_encoder.run({"pixel_values": pixels})["image_embedding"]

A session lives as long as its ``with`` block: its weights leave memory with it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import onnxruntime

from sonic.bundle import Bundle
from sonic.cpu import has_bfloat16_products
from sonic.errors import BundleError, InputError
from sonic.options import BALANCED, RunOptions

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Call:
    """One run of a submodel, as an observer sees it; `tags` says where in the clip it happened."""

    submodel: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    tags: Mapping[str, Any] = field(default_factory=dict)


Observer = Callable[[Call], None]


class Session(Protocol):
    """A submodel that is ready to run."""

    def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> Arrays:
        """Compute every output, by name, from every input, by name."""

    def __enter__(self) -> Session: ...

    def __exit__(self, *error: Any) -> None: ...


class Submodels(Protocol):
    """The submodels of one bundle, to be opened."""

    @property
    def bundle(self) -> Bundle:
        """The bundle."""

    def open(self, submodel: str) -> Session:
        """Load a submodel; leave the ``with`` block to free it."""


class Engine(Submodels, Protocol):
    """Opens the submodels of one bundle; `observer` sees every call."""

    observer: Observer | None


def session_options() -> onnxruntime.SessionOptions:
    """Options of every session that is called more than once: errors only are told, and memory stays flat."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # With it, the second call of a shape takes one block for all activations beside those of the first
    # call, which stay: 0.85 GB became 1.55 GB in 24 frames of 256 pixels. It saves no time.
    options.enable_mem_pattern = False
    return options


def open_session(graph: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session on the CPU, without the memory that opening it took in passing.

    Weights are rearranged for their kernels one after another, and glibc keeps much of what each one leaves:
    0.3 of the 1.0 GB that the published UNet's float16 graph has after loading.
    """
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    _return_freed_memory()
    return session


def _return_freed_memory() -> None:
    """Give the system what glibc keeps of freed memory; other allocators do as they like."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


class OnnxRuntimeEngine:
    """Runs a bundle's ONNX files on the CPU.

    Args:
        bundle: the checked bundle.
        run: threads, and the calls at the same time that share them; products in bfloat16.

    Raises:
        InputError: this processor can't.
    """

    def __init__(self, bundle: Bundle, run: RunOptions = BALANCED) -> None:
        if run.bfloat16 and not has_bfloat16_products():
            raise InputError(
                "bfloat16 needs an aarch64 processor that has it (Graviton3 and later), and this one has "
                "not; leave it off"
            )
        self.bundle = bundle
        self.observer: Observer | None = None
        self._options = session_options()
        threads = run.threads_of_a_call
        if threads is not None:
            # A session's calls share its pool, in which the thread of one caller is counted.
            self._options.intra_op_num_threads = run.calls_at_once * (threads - 1) + 1
        if run.bfloat16:
            self._options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "1")

    def open(self, submodel: str) -> OnnxRuntimeSession:
        """Load a submodel.

        Raises:
            BundleError: ONNX Runtime refuses the file.
        """
        path = self.bundle.graph_path(submodel)
        try:
            session = open_session(path, self._options)
        except Exception as error:  # ONNX Runtime's errors share no base class
            reason = str(error).splitlines()[0]
            raise BundleError(
                f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__} ({reason}); "
                "convert the checkpoint again or update onnxruntime"
            ) from error
        return OnnxRuntimeSession(submodel, session, self)


class OnnxRuntimeSession:
    """A loaded ONNX submodel."""

    def __init__(
        self, submodel: str, session: onnxruntime.InferenceSession, engine: OnnxRuntimeEngine
    ) -> None:
        self._submodel = submodel
        self._session: onnxruntime.InferenceSession | None = session
        self._engine = engine
        self._output_names = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> Arrays:
        """Compute every output from every input."""
        if self._session is None:
            raise RuntimeError(f"the session of '{self._submodel}' is closed")
        feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        outputs = dict(
            zip(self._output_names, self._session.run(self._output_names, feeds), strict=True)
        )
        if self._engine.observer is not None:
            self._engine.observer(Call(self._submodel, feeds, outputs, tags))
        return outputs

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = None
        _return_freed_memory()


class SharedSessions:
    """Opens every submodel of an engine once, and leaves it open until it is told otherwise.

    For several clips, also from several threads. Sessions that somebody still uses live on for them.
    """

    def __init__(self, engine: Submodels) -> None:
        self._engine = engine
        self._opened: dict[str, Session] = {}
        self._opening = Lock()

    @property
    def bundle(self) -> Bundle:
        """The engine's."""
        return self._engine.bundle

    def open(self, submodel: str) -> Session:
        """A session that the end of its ``with`` block leaves open."""
        with self._opening:
            if submodel not in self._opened:
                self._opened[submodel] = self._engine.open(submodel)
            return _LeftOpen(self._opened[submodel])

    def close(self) -> None:
        """Let go of all sessions; later ones are opened again."""
        with self._opening:
            self._opened.clear()


class _LeftOpen:
    """A session whose ``with`` block does not close it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> Arrays:
        return self._session.run(inputs, **tags)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


def _tvm_engine(bundle: Bundle, run: RunOptions) -> Engine:
    from sonic.tvm_engine import TvmEngine  # imports this module

    return TvmEngine(bundle, run)


ENGINES: dict[str, Callable[[Bundle, RunOptions], Engine]] = {
    "onnxruntime": OnnxRuntimeEngine,
    "tvm": _tvm_engine,
}


def make_engine(bundle: Bundle, run: RunOptions = BALANCED) -> Engine:
    """The engine that a bundle was made for.

    Raises:
        BundleError: this runtime does not have it.
        InputError: the processor does not have bfloat16.
    """
    name = bundle.manifest.engine
    if name not in ENGINES:
        raise BundleError(
            f"{bundle.directory} was made for the engine '{name}', but this runtime has "
            f"{', '.join(ENGINES)}; convert the checkpoint for one of them"
        )
    return ENGINES[name](bundle, run)
