"""Items that are made ahead of their reader."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.storage.prefetch import run_ahead


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
