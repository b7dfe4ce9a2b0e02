"""Items that are made ahead of their reader."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.storage.prefetch import map_ahead, run_ahead


@given(st.lists(st.integers()), st.integers(1, 5))
def test_the_same_items_in_the_same_order(items: list[int], capacity: int) -> None:
    assert list(run_ahead(items, capacity)) == items


def test_items_are_made_in_another_thread_and_no_more_than_fit() -> None:
    made: list[int] = []
    threads: set[int] = set()

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            threads.add(threading.get_ident())
            yield number

    ahead = run_ahead(numbers(), 3)
    assert next(ahead) == 0
    assert next(ahead) == 1
    assert len(made) <= 2 + 3 + 1  # read, waiting, and the one that waits for room
    ahead.close()
    assert threading.get_ident() not in threads and len(made) <= 6


def test_an_error_comes_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no more")

    seen: list[int] = []
    with pytest.raises(ValueError, match="no more"):
        for number in run_ahead(broken(), 1):
            seen.append(number)
    assert seen == [1, 2]


@pytest.mark.parametrize("read", [0, 1, 4])
def test_a_reader_that_stops_leaves_no_thread(read: int) -> None:
    before = threading.active_count()
    ahead = run_ahead(iter(range(1000)), 2)
    for _ in range(read):
        next(ahead)
    ahead.close()
    assert threading.active_count() == before


@settings(deadline=None)
@given(st.lists(st.integers(0, 3)), st.integers(1, 5), st.integers(1, 4))
def test_results_come_in_order_whichever_is_first(items: list[int], at_once: int, workers: int) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def square(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(item / 5000)
        with lock:
            running -= 1
        return item**2

    with ThreadPoolExecutor(workers) as pool:
        assert list(map_ahead(square, items, pool, at_once)) == [item**2 for item in items]
    assert most <= min(at_once, workers)


def test_as_many_as_asked_for_run_at_the_same_time() -> None:
    together = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        # Each of three waits for the other two.
        results = map_ahead(lambda item: together.wait(10) * 0 + item, range(6), pool, 3)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        assert list(results) == [3, 4, 5]


def test_one_at_a_time_is_lazy() -> None:
    made: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(made.append, range(5), pool, 1)
        next(results)
        assert made == [0]
        next(results)
        assert made == [0, 1]
        results.close()  # type: ignore[attr-defined]
    assert made == [0, 1]


def test_an_error_comes_in_its_place_and_what_waits_is_taken_back() -> None:
    started: list[int] = []
    failed = threading.Event()

    def work(item: int) -> int:
        started.append(item)
        if item == 1:
            raise ValueError("broken")
        if item == 2:
            failed.wait(10)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(work, range(9), pool, 4)
        assert next(results) == 0
        with pytest.raises(ValueError, match="broken"):
            next(results)
        failed.set()
    # Of the four that waited, only the next one may have started before the reader knew.
    assert started in ([0, 1], [0, 1, 2])
