"""Running submodels: one small interface, so that another engine can take ONNX Runtime's place.

    engine = OnnxRuntimeEngine(bundle)
    with engine.open("image_encoder") as image_encoder:
        embedding = image_encoder.run({"pixel_values": pixels})["image_embedding"]

A session lives as long as its ``with`` block: its weights leave memory with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import onnxruntime

from sonic.bundle import Bundle
from sonic.errors import BundleError

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


class Engine(Protocol):
    """Opens the submodels of one bundle."""

    bundle: Bundle
    observer: Observer | None

    def open(self, submodel: str) -> Session:
        """Load a submodel; leave the ``with`` block to free it."""


class OnnxRuntimeEngine:
    """Runs a bundle's ONNX files on the CPU.

    Args:
        bundle: the checked bundle.
        threads: threads for one operator; None lets ONNX Runtime choose.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.bundle = bundle
        self.observer: Observer | None = None
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = 3
        if threads is not None:
            self._options.intra_op_num_threads = threads

    def open(self, submodel: str) -> OnnxRuntimeSession:
        """Load a submodel.

        Raises:
            BundleError: ONNX Runtime refuses the file.
        """
        path = self.bundle.graph_path(submodel)
        try:
            session = onnxruntime.InferenceSession(
                str(path), self._options, providers=["CPUExecutionProvider"]
            )
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


ENGINES: dict[str, Callable[[Bundle, int | None], Engine]] = {"onnxruntime": OnnxRuntimeEngine}


def make_engine(bundle: Bundle, threads: int | None = None) -> Engine:
    """The engine that a bundle was made for.

    Raises:
        BundleError: this runtime does not have it.
    """
    name = bundle.manifest.engine
    if name not in ENGINES:
        raise BundleError(
            f"{bundle.directory} was made for the engine '{name}', but this runtime has "
            f"{', '.join(ENGINES)}; convert the checkpoint for one of them"
        )
    return ENGINES[name](bundle, threads)
