"""Per-clip state while an engine runs a clip: who observes its calls, and whether it is cancelled.

    engine = WatchedEngine(engine, observer=print, cancel=threading.Event())

Each clip has such an engine of its own; the engine that it wraps may be shared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sonic.bundle.bundle import Bundle
from sonic.engines.base import Arrays, Engine, Parallelism, Session, WrappedSession
from sonic.errors import GenerationCancelled


@dataclass(frozen=True)
class Call:
    """One run of a submodel, as an observer sees it; `tags` say where in the clip it happened."""

    submodel: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    tags: Mapping[str, Any] = field(default_factory=dict)


Observer = Callable[[Call], None]


class WatchedEngine:
    """Wraps an engine for one clip.

    Args:
        engine: runs the submodels.
        observer: called with the inputs and outputs of every run, in the thread that ran it.
        cancel: once it is set, the next run raises :class:`sonic.errors.GenerationCancelled`.
    """

    def __init__(
        self, engine: Engine, observer: Observer | None = None, cancel: threading.Event | None = None
    ) -> None:
        self._engine, self._observer, self._cancel = engine, observer, cancel

    @property
    def bundle(self) -> Bundle:
        """The bundle of the wrapped engine."""
        return self._engine.bundle

    def open(self, submodel: str, parallelism: Parallelism | None = None) -> Session:
        """Load a submodel.

        Raises:
            BundleError: it cannot be loaded.
            GenerationCancelled: the clip is cancelled.
        """
        check_cancelled(self._cancel)
        session = self._engine.open(submodel, parallelism)
        if self._observer is None and self._cancel is None:
            return session
        return _WatchedSession(submodel, session, self._observer, self._cancel)


class _WatchedSession(WrappedSession):
    """A session whose calls are observed, and raise once the clip is cancelled."""

    def __init__(
        self, submodel: str, session: Session, observer: Observer | None, cancel: threading.Event | None
    ) -> None:
        super().__init__(session)
        self._submodel, self._observer, self._cancel = submodel, observer, cancel

    def run(self, inputs: Mapping[str, np.ndarray], **tags: object) -> Arrays:
        check_cancelled(self._cancel)
        # Engines take any memory layout; observers get C-contiguous arrays, which is how files store them.
        inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        outputs = self._session.run(inputs, **tags)
        if self._observer is not None:
            self._observer(Call(self._submodel, inputs, outputs, tags))
        return outputs


def check_cancelled(cancel: threading.Event | None) -> None:
    """Raise an error if the clip is cancelled.

    Raises:
        GenerationCancelled: `cancel` is set.
    """
    if cancel is not None and cancel.is_set():
        raise GenerationCancelled("the generation was cancelled; nothing was written")
