"""Ordered work in threads: order, errors, and what is left running."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from requant.parallel import in_order

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def late(i: int) -> int:
        time.sleep(0.002 * (3 - i % 4))
        return i * i

    assert list(in_order(late, range(20), workers)) == [i * i for i in range(20)]


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    results = in_order(lambda i: i, items(), 2)
    assert next(results) == 0
    assert len(taken) == 3  # one being awaited, two under way
    results.close()


def test_as_many_as_there_are_workers_run_at_once() -> None:
    both = threading.Barrier(2, timeout=10)
    assert len(list(in_order(lambda _: both.wait(), range(4), 2))) == 4


def test_the_first_failure_in_order_is_raised_and_the_rest_is_stopped() -> None:
    stopped = threading.Event()

    def fail(i: int) -> int:
        if i == 2:
            stopped.wait(10)  # under way when item 1 fails
        elif i == 1:
            time.sleep(0.02)
            raise ValueError("item 1")
        elif i == 3:
            raise ValueError("item 3")
        return i

    start = time.monotonic()
    with pytest.raises(ValueError, match="item 1"):
        list(in_order(fail, range(10), 2, stop=stopped.set))
    assert stopped.is_set()
    assert time.monotonic() - start < 5
