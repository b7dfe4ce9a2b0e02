"""Running submodels: one small interface, so that another engine can take ONNX Runtime's place.

    engine = make_engine(bundle)
    with engine.open("image_encoder") as image_encoder:
        embedding = image_encoder.run({"pixel_values": pixels})["image_embedding"]

A session lives as long as its ``with`` block, and its weights are freed with it. Engines and sessions hold no
per-clip state, so any number of clips, in any threads, may share them; per-clip state, such as the observer,
is in :mod:`sonic.engines.watched`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np

from sonic.bundle.bundle import Bundle

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Parallelism:
    """How many calls of a session run at the same time, and on how many threads; it changes no result.

    Attributes:
        calls_at_once: number of threads that call the session at the same time.
        threads: total of all these calls, at least `calls_at_once`.
    """

    calls_at_once: int
    threads: int

    @property
    def threads_of_a_call(self) -> int:
        """Threads of each call, where they cannot be shared."""
        return self.threads // self.calls_at_once

    @property
    def alone(self) -> Parallelism:
        """All threads for one call at a time."""
        return Parallelism(1, self.threads)

    def __str__(self) -> str:
        calls = "1 call at a time" if self.calls_at_once == 1 else f"{self.calls_at_once} calls at once"
        return f"{calls} on {self.threads} thread{'' if self.threads == 1 else 's'}"


class Session(Protocol):
    """A submodel that is ready to run; any number of threads may call it at the same time."""

    def run(self, inputs: Mapping[str, np.ndarray], **tags: object) -> Arrays:
        """Run the submodel: takes all of its inputs by name, returns all of its outputs by name.

        `tags` say where in the clip the call belongs, for observers; they do not change the outputs.
        """

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class WrappedSession:
    """Base of sessions that add something to the runs of another one, and end with it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, inputs: Mapping[str, np.ndarray], **tags: object) -> Arrays:
        """Run the submodel."""
        return self._session.run(inputs, **tags)

    def __enter__(self) -> Session:
        self._session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session.__exit__(kind, error, trace)


class Engine(Protocol):
    """Opens the submodels of one bundle."""

    @property
    def bundle(self) -> Bundle:
        """The bundle whose submodels it opens."""

    def open(self, submodel: str, parallelism: Parallelism | None = None) -> Session:
        """Load a submodel; it is freed at the end of the session's ``with`` block.

        Args:
            submodel: its name.
            parallelism: what its calls are prepared for; by default, one call at a time on all threads.

        Raises:
            BundleError: it cannot be loaded.
        """
