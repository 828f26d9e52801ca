"""The collector comes back when the last one leaves, whatever happens inside, and only where it ran before."""

from __future__ import annotations

import gc
import threading

import pytest

from requant.uncollected import uncollected


def test_it_comes_back_when_the_last_one_leaves() -> None:
    assert gc.isenabled()
    with uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_brings_it_back() -> None:
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()


def test_one_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_threads_pause_it_together() -> None:
    inside, leave = threading.Event(), threading.Event()

    @uncollected()
    def work() -> None:
        inside.set()
        leave.wait()

    thread = threading.Thread(target=work)
    with uncollected():
        thread.start()
        inside.wait()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()
