"""The terminal: where results are printed, and how far a long job has come."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from requant.cli.output import CONTROLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from rich.console import ConsoleOptions, RenderableType
    from rich.progress import TaskID
    from rich.segment import Segment

    from requant.types import Progress

_WIDTH = 120  # where there is no terminal
_LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class _Console(Console):
    """Prints names as they are, but pictures of control characters; a reader that has gone ends it as any program."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _WIDTH

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=segment.text.translate(CONTROLS))

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def open_console() -> Console:
    """Where results are printed."""
    return _Console()


@contextmanager
def progress(*, quiet: bool, what: str = "calibrating", unit: str = "samples") -> Iterator[Progress | None]:
    """A callback that draws a bar on a terminal, and prints a line every ten seconds elsewhere."""
    with stages((what, unit), quiet=quiet) as (only,):
        yield only


@contextmanager
def stages(*work: tuple[str, str], quiet: bool) -> Iterator[tuple[Progress | None, ...]]:
    """Such a callback for each of several stages of ``work``: what is done, and what is counted."""
    if quiet:
        yield tuple(None for _ in work)
        return
    if not sys.stderr.isatty():
        with _Lines() as lines:
            yield tuple(lines.of(what, unit) for what, unit in work)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_Console(stderr=True), transient=True) as bars:

        def shown(task: TaskID) -> Callable[[int, int | None], None]:
            return lambda done, total: bars.update(task, completed=done, total=total, visible=True)

        yield tuple(shown(bars.add_task(what, total=None, visible=i == 0)) for i, (what, _) in enumerate(work))


class _Lines:
    """Prints how far the work has come every ten seconds, also while nothing is told of it."""

    def __init__(self) -> None:
        self._text: Callable[[], str] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print, name="requant progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def of(self, what: str, unit: str) -> Progress:
        """The callback of a stage."""
        began, first = 0.0, 0
        self._text = self._text or (lambda: what)

        def show(done: int, total: int | None) -> None:
            nonlocal began, first
            now = time.monotonic()
            if not began:
                began, first = now, done  # what was loaded before says nothing of how long the rest takes
            left = (now - began) * (total - done) / (done - first) if total and done > first else None

            def text() -> str:
                counted = f"{what}: {done}{f' of {total}' if total else ''} {unit}"
                return counted if left is None else f"{counted}, {max(0.0, left - (time.monotonic() - now)):.0f} s left"

            self._text = text

        return show

    def _print(self) -> None:
        while not self._ended.wait(_LINE_EVERY):
            if self._text is not None:
                print(self._text(), file=sys.stderr, flush=True)
