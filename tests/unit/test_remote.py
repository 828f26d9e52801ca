"""Items and their context through executors: order, errors, lost workers, and how much is under way."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import pytest

from requant import remote
from requant.errors import CalibrationError, ConfigError, ExecutorError, RequantError
from requant.remote import ATTEMPTS, map_remote

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Adding:
    """A context that counts how often it is opened in this process."""

    number: int

    def open(self) -> int:
        OPENED.append(self.number)
        return self.number


OPENED: list[int] = []


def add(number: int, item: int) -> int:
    return number + item


def fail(number: int, item: int) -> int:
    if item == 3:
        raise CalibrationError("item 3", hint="leave it out")
    return item


def die(number: int, item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_results_come_in_order_and_the_context_is_opened_once() -> None:
    OPENED.clear()
    with ThreadPoolExecutor(3) as pool:
        assert list(map_remote(pool, Adding(10), add, range(20))) == list(range(10, 30))
    assert OPENED == [10]


def test_processes_give_the_same() -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(map_remote(pool, Adding(10), add, range(9))) == list(range(10, 19))
        with pytest.raises(CalibrationError, match="item 3") as caught:
            list(map_remote(pool, Adding(10), fail, range(9)))
        assert (caught.value.message, caught.value.hint) == ("item 3", "leave it out")
        assert list(map_remote(pool, Adding(1), add, range(3))) == [1, 2, 3]  # the executor is left alone
        with pytest.raises(ExecutorError, match="the executor lost work: BrokenProcessPool") as lost:
            list(map_remote(pool, Adding(10), die, range(9)))
        assert len(str(lost.value).splitlines()) <= 5
        with pytest.raises(ExecutorError):  # it is broken for good
            list(map_remote(pool, Adding(10), add, range(9)))


class Losing(Executor):
    """Loses each item so many times."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.calls: dict[int, int] = {}
        self.cancelled = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        index = args[3]
        self.calls[index] = self.calls.get(index, 0) + 1
        if self.calls[index] <= self.times:
            future.set_exception(OSError("connection lost"))
        else:
            future.set_result(fn(*args))
        return future


def test_lost_items_are_submitted_again() -> None:
    assert list(map_remote(Losing(2), Adding(5), add, range(6))) == list(range(5, 11))


def test_what_is_lost_again_and_again_is_an_error() -> None:
    losing = Losing(99)
    with pytest.raises(ExecutorError, match="OSError: connection lost"):
        list(map_remote(losing, Adding(5), add, range(6)))
    assert losing.calls[0] == ATTEMPTS + 1


def test_items_are_taken_as_they_are_needed_and_the_rest_is_cancelled() -> None:
    taken, gate = [], threading.Event()

    def items() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    with ThreadPoolExecutor(2) as pool:
        blocked = pool.submit(gate.wait, 10), pool.submit(gate.wait, 10)
        threading.Timer(0.1, gate.set).start()
        with closing(map_remote(pool, Adding(0), add, items())) as results:
            assert next(results) == 0
            assert len(taken) == 4  # two for each worker
        assert all(future.result() for future in blocked)
        assert pool.submit(add, 1, 2).result() == 3


def test_workers_keep_few_contexts() -> None:
    with ThreadPoolExecutor(1) as pool:
        for number in range(5):
            assert list(map_remote(pool, Adding(number), add, [1])) == [number + 1]
    assert len(remote._contexts) <= 2


def test_what_cannot_be_pickled_is_told() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError, match="cannot be sent to other processes"):
        list(map_remote(pool, Adding(1), lambda number, item: item, [1]))


@pytest.mark.parametrize("kind", [RequantError, *RequantError.__subclasses__()])
def test_errors_travel_whole(kind: type[RequantError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", hint="help")))
    assert (type(error), error.message, error.hint, str(error)) == (kind, "what", "help", "what\nhelp: help")
