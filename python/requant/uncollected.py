"""Building graphs without Python's cyclic garbage collector looking on.

A graph is many objects that refer to each other and stay. The collector walks over all of them again and again while
they are made, which takes as long as making them; afterwards it goes on as before.
"""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_lock = threading.Lock()
_depth = 0
_enabled = False


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the collector, where it runs, until the last of those who are inside leaves; also a decorator."""
    global _depth, _enabled  # noqa: PLW0603 - the collector is one for the process
    with _lock:
        if _depth == 0:
            _enabled = gc.isenabled()
            gc.disable()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _enabled:
                gc.enable()
