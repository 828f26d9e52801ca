"""Work in other processes or on other machines, through any ``concurrent.futures.Executor``.

What all items need (a model, samples to compare on) is a *context*. It is sent only to workers that lack it: an item is
submitted without, a worker that does not have the context open says so, and the item goes again, with it. Workers keep
the last contexts open. Everything submitted is a function of a module and values that pickle; results come in the order
of the items, so that they do not depend on who computed what, and when.

What a function raises comes back as a value. An exception of a future itself is thus the executor's: a worker that
died, a connection that broke. Such an item is submitted again, a few times.
"""

from __future__ import annotations

import pickle
import threading
import uuid
from collections import OrderedDict, deque
from concurrent.futures import BrokenExecutor, CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from requant.errors import ConfigError, ExecutorError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Executor, Future

Opened_co = TypeVar("Opened_co", covariant=True)
Opened = TypeVar("Opened")
T = TypeVar("T")
R = TypeVar("R")

#: How often an item is submitted at most.
ATTEMPTS = 5
#: Items under way where the executor does not tell how many workers it has.
IN_FLIGHT = 64
_KEPT = 2  # contexts that a worker keeps open


class Context(Protocol[Opened_co]):
    """What all items need; it pickles."""

    def open(self) -> Opened_co:
        """What functions are given, made once in each worker."""


@dataclass(frozen=True, slots=True)
class _Result:
    """What became of an item: a value, an exception of the function, or a worker that lacks the context."""

    value: Any = None
    problem: Exception | None = None
    absent: bool = False


def map_remote(
    executor: Executor, context: Context[Opened], function: Callable[[Opened, T], R], items: Iterable[T]
) -> Generator[R, None, None]:
    """``function(context.open(), item)`` of each item, in the order of the items, wherever ``executor`` runs it.

    Items are taken as they are needed, two for each worker. When one fails, on an interrupt, and when the generator is
    closed early (use ``contextlib.closing``), what was not begun is cancelled; the executor itself is left alone.

    Raises:
        ConfigError: the context cannot be pickled.
        ExecutorError: a worker was lost too often, or the executor with it.
        Exception: what ``function`` raises.
    """
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(f"expected an executor with submit, as of concurrent.futures, got {type(executor).__name__}")
    try:
        pickle.dumps((context, function))
    except Exception as problem:
        raise ConfigError(
            f"this work cannot be sent to other processes: {first_line(problem)}",
            hint="define functions such as metrics at the top of a module, or leave out executor",
        ) from problem
    key = uuid.uuid4().hex
    limit = 2 * (getattr(executor, "_max_workers", None) or IN_FLIGHT // 2)
    waiting: deque[tuple[int, T, Future[_Result]]] = deque()

    def submit(index: int, item: T, sent: Context[Opened] | None) -> Future[_Result]:
        try:
            return executor.submit(_work, key, sent, function, index, item)
        except (BrokenExecutor, RuntimeError) as problem:  # broken, or shut down
            raise _lost(problem) from problem

    def result() -> R:
        index, item, future = waiting.popleft()
        problem: Exception = RuntimeError("no worker keeps what all items need")
        for _ in range(ATTEMPTS):
            try:
                found = future.result()
            except (BrokenExecutor, CancelledError) as broken:
                raise _lost(broken) from broken
            except Exception as failed:
                problem = failed
            else:
                if found.problem is not None:
                    raise found.problem
                if not found.absent:
                    value: R = found.value
                    return value
            future = submit(index, item, context)
        future.cancel()
        raise _lost(problem) from problem

    try:
        for index, item in enumerate(items):
            waiting.append((index, item, submit(index, item, None)))
            if len(waiting) >= limit:
                yield result()
        while waiting:
            yield result()
    finally:
        for _, _, future in waiting:
            future.cancel()


def _lost(problem: BaseException) -> ExecutorError:
    what = first_line(problem) if isinstance(problem, Exception) else type(problem).__name__
    return ExecutorError(
        f"the executor lost work: {type(problem).__name__}: {what}",
        hint="a worker may have been killed, or run out of memory; try again with a new executor and fewer workers",
    )


# What runs in a worker.

_contexts: OrderedDict[str, Any] = OrderedDict()
_opening = threading.Lock()


def _work(
    key: str, context: Context[Any] | None, function: Callable[[Any, Any], Any], index: int, item: Any
) -> _Result:
    """``index`` only makes calls differ: some executors take equal calls for one."""
    del index
    try:
        with _opening:
            if key not in _contexts:
                if context is None:
                    return _Result(absent=True)
                _contexts[key] = context.open()
                while len(_contexts) > _KEPT:
                    _contexts.popitem(last=False)
            opened = _contexts[key]
        return _Result(function(opened, item))
    except Exception as problem:
        return _Result(problem=problem)
