"""Stages that run concurrently: each passes its results to the next through a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def run_ahead(items: Iterable[Item], capacity: int) -> Generator[Item, None, None]:
    """Iterate over items that a separate thread produces, at most `capacity` of them ahead of the reader.

    An exception in that thread is raised here, after the items before it. When the reader stops early,
    the thread stops at its next item; closing this iterator waits for the thread to end.
    """
    ready: queue.Queue[object] = queue.Queue(capacity)
    stopped = threading.Event()
    failure: list[BaseException] = []

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:
            failure.append(error)
        put(_END)

    thread = threading.Thread(target=produce, name="sonic-stage", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            yield item  # type: ignore[misc]
        if failure:
            raise failure[0]
    finally:
        stopped.set()
        thread.join()
