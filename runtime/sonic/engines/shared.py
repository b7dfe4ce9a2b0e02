"""Sessions that several clips share."""

from __future__ import annotations

from threading import Lock
from types import TracebackType

from sonic.bundle.bundle import Bundle
from sonic.engines.base import Engine, Parallelism, Session, WrappedSession


class SharedSessions:
    """Opens every submodel of an engine once, and keeps it loaded until `close`.

    For several clips, in any threads. A session that a clip is still using stays usable after `close`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._opened: dict[str, Session] = {}
        self._opening = Lock()

    @property
    def bundle(self) -> Bundle:
        """The engine's bundle."""
        return self._engine.bundle

    def open(self, submodel: str, parallelism: Parallelism | None = None) -> Session:
        """A session that stays open after its ``with`` block; the first to open it says for what parallelism.

        Raises:
            BundleError: the submodel cannot be loaded.
        """
        with self._opening:
            if submodel not in self._opened:
                self._opened[submodel] = self._engine.open(submodel, parallelism)
            return _BorrowedSession(self._opened[submodel])

    def close(self) -> None:
        """Drop all sessions; submodels that are opened later are loaded again."""
        with self._opening:
            self._opened.clear()


class _BorrowedSession(WrappedSession):
    """A session whose ``with`` block does not close it: its owner does."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass
