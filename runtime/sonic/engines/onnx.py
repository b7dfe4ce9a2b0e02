"""Running submodels with ONNX Runtime on the CPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType

import numpy as np
import onnxruntime

from sonic.bundle.bundle import Bundle
from sonic.engines.base import Arrays, Parallelism
from sonic.engines.graph_check import check_graph
from sonic.errors import BundleError, InputError, first_line
from sonic.host import cpu_count, has_bfloat16_products
from sonic.options import AUTOMATIC, RunOptions

# Threads of a pool wait for the next operator in a busy loop, which takes the cores from other processes. On
# two cores, one process with two threads made 19.1 calls of sonic-tiny's UNet a second and two made 13.9
# together; with so short a wait 18.5 and 19.9, without one 14.8 and 23.6.
_SPIN_MICROSECONDS = "20"


_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def session_options() -> onnxruntime.SessionOptions:
    """Options for every session that is called more than once: only errors are logged; memory stays flat."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # With memory patterns, the second call with the same shapes allocates one block for all activations in
    # addition to those of the first call, which are kept: 0.85 GB became 1.55 GB for 24 frames of 256 pixels.
    # They save no time.
    options.enable_mem_pattern = False
    return options


def open_session(graph: Path | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Open a session on the CPU, without keeping the memory that was needed only for loading.

    ONNX Runtime repacks the weights for its kernels one after another, and glibc keeps much of the memory
    that this frees: 0.3 of the 1.0 GB that the published UNet's float16 graph takes after loading.
    """
    source = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    if isinstance(graph, bytes):
        session._model_bytes = b""  # kept to fall back to another provider, of which there is none
    _return_freed_memory()
    return session


def _return_freed_memory() -> None:
    """Return freed memory that glibc keeps to the system; does nothing with other C libraries."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _folder_of(descriptor: int, path: Path) -> str:
    """A name of an open folder that stays valid when it is moved; its path on systems without such names."""
    held = Path(f"/proc/self/fd/{descriptor}")
    return str(held if held.exists() else path)


class OnnxRuntimeEngine:
    """Runs a bundle's ONNX files on the CPU.

    Args:
        bundle: the checked bundle.
        run: threads where a session is opened for one call at a time, and whether to multiply in bfloat16.

    Raises:
        InputError: bfloat16 was asked for, but this processor does not support it.
    """

    def __init__(self, bundle: Bundle, run: RunOptions = AUTOMATIC) -> None:
        if run.bfloat16 and not has_bfloat16_products():
            raise InputError(
                "bfloat16 needs an aarch64 processor that supports it (Graviton3 and later), and this one "
                "does not; leave the option out"
            )
        self.bundle = bundle
        self._run = run

    def open(self, submodel: str, parallelism: Parallelism | None = None) -> OnnxRuntimeSession:
        """Load a submodel; calls at the same time share the session's threads.

        Raises:
            BundleError: the graph or its weights were changed, hold what no bundle's do, or cannot be loaded.
        """
        graph, *weights = (file.path for file in self.bundle.manifest.submodels[submodel].files)
        source = self.bundle.directory / graph
        content = self.bundle.read(graph)
        options = self._session_options(parallelism)
        with ExitStack() as held:
            sizes = {}
            for path in weights:
                opened = held.enter_context(self.bundle.opened(path))
                sizes[PurePosixPath(path).name] = os.fstat(opened.descriptor).st_size
                # Weights are looked for in the very folder that the checked file is in, even if it moves.
                options.add_session_config_entry(_WEIGHTS_FOLDER, _folder_of(opened.folder, source.parent))
            if any(PurePosixPath(path).parent != PurePosixPath(graph).parent for path in weights):
                raise BundleError(f"{source}: its weights should be beside it; convert the checkpoint again")
            check_graph(content, str(source), sizes)
            try:
                session = open_session(content, options)
            except Exception as error:  # ONNX Runtime's errors share no base class
                raise BundleError(
                    f"{source} cannot be loaded by ONNX Runtime {onnxruntime.__version__} "
                    f"({first_line(error)}); convert the checkpoint again or update onnxruntime"
                ) from error
        return OnnxRuntimeSession(submodel, session)

    def _session_options(self, parallelism: Parallelism | None) -> onnxruntime.SessionOptions:
        chosen = parallelism or Parallelism(1, self._run.threads or cpu_count())
        options = session_options()
        # The callers compute too; a pool's size includes one of them.
        options.intra_op_num_threads = chosen.threads - chosen.calls_at_once + 1
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
        if self._run.bfloat16:
            options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "1")
        return options


class OnnxRuntimeSession:
    """A loaded ONNX submodel."""

    def __init__(self, submodel: str, session: onnxruntime.InferenceSession) -> None:
        self._submodel = submodel
        self._session: onnxruntime.InferenceSession | None = session
        self._output_names = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray], **tags: object) -> Arrays:
        """Compute every output from every input."""
        session = self._session
        if session is None:
            raise RuntimeError(f"the session of '{self._submodel}' is closed")
        feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        return dict(zip(self._output_names, session.run(self._output_names, feeds), strict=True))

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
