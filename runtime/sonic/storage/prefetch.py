"""Work that runs ahead of its reader, in other threads, by a bounded number of results."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
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


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], pool: Executor, at_once: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in order, with up to `at_once` of them in the pool.

    Items are read as they are needed, by the thread that reads the results. When the reader stops early,
    closing this iterator takes back what has not started.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= at_once:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for call in pending:
            call.cancel()
