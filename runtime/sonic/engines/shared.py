"""Sessions that several clips share."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np

from sonic.bundle.store import Bundle
from sonic.engines.base import Arrays, Session, Submodels


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
