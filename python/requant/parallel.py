"""Work on several items at once, with results in the order of the items."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    function: Callable[[T], R], items: Iterable[T], workers: int, *, stop: Callable[[], None] = lambda: None
) -> Generator[R, None, None]:
    """``function`` of each item, up to ``workers`` at once, in threads.

    Items are taken as they are needed, one more than there are workers; the first item whose call raises is the one
    whose exception is raised. When that happens, on an interrupt, and when the generator is closed early (use
    ``contextlib.closing``), ``stop`` is called to end what is under way: nobody waits for it.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="requant")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:
        stop()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
