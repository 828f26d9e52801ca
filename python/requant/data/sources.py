"""Streams of tables: those that give the same at each pass, and those that may not."""

from __future__ import annotations

from itertools import chain, count
from typing import TYPE_CHECKING, Any, Protocol

from requant.data.tables import Table, copied
from requant.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager


class Source(Protocol):
    """A stream of tables.

    Attributes:
        name: For people; no directories.
        stable: Each pass gives the same samples, and their number can be told from headers alone.
    """

    name: str
    stable: bool

    def tables(self) -> Iterator[Table]:
        """One pass over the data."""

    def peek(self) -> Table | None:
        """The first table, which the next pass still gives; None if there is none."""


class StableSource:
    """Tables that can be opened again and again: arrays, sequences, files."""

    stable = True

    def __init__(self, name: str, openers: Sequence[Callable[[], AbstractContextManager[Table]]]) -> None:
        self.name, self._openers = name, openers

    def tables(self) -> Iterator[Table]:
        """One pass; each table is open until the next."""
        for opener in self._openers:
            with opener() as table:
                yield table

    def peek(self) -> Table | None:
        """The first table."""
        return next(self.tables(), None)


class StreamSource:
    """Tables from an iterable that may give others the next time, or may be read once only.

    Args:
        name: For people.
        start: Begins a pass; raises DataError if there can be no further pass.
        to_table: Makes a table of an item, given its index.
    """

    stable = False

    def __init__(
        self, name: str, start: Callable[[], Iterator[object]], to_table: Callable[[object, int], Table]
    ) -> None:
        self.name, self._start, self._to_table = name, start, to_table
        self._begun: Iterator[Table] | None = None

    def tables(self) -> Iterator[Table]:
        """One pass, or the rest of the one that ``peek`` began."""
        begun, self._begun = self._begun, None
        yield from begun if begun is not None else self._pass()

    def peek(self) -> Table | None:
        """The first table; the next pass still gives it."""
        begun = self._begun or self._pass()
        first = next(begun, None)
        self._begun = begun if first is None else chain([first], begun)
        return first

    def _pass(self) -> Iterator[Table]:
        return (copied(self._to_table(item, i)) for i, item in enumerate(self._start()))


def iterable_passes(source: Any) -> Callable[[], Iterator[object]]:
    """Begins a pass over an iterable; a second one fails if the iterable is an iterator."""
    passes = count()

    def start() -> Iterator[object]:
        iterator: Iterator[object] = iter(source)
        if next(passes) and iterator is source:
            raise DataError(
                f"the {type(source).__name__} can be read only once",
                hint="give a list, arrays or files, which can be read again",
            )
        return iterator

    return start


def reader_passes(reader: Any) -> Callable[[], Iterator[object]]:
    """Begins a pass over onnxruntime's CalibrationDataReader; a second one needs its ``rewind()``."""
    passes = count()

    def start() -> Iterator[object]:
        if next(passes):
            if not callable(getattr(reader, "rewind", None)):
                raise DataError(f"the {type(reader).__name__} can be read only once", hint="give it a method rewind()")
            reader.rewind()
        feeds: Iterator[object] = iter(reader.get_next, None)
        return feeds

    return start
