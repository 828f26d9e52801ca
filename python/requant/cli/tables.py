"""Tables on a terminal: words to the left, where they may wrap, and figures to the right, which do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console, ConsoleOptions, RenderResult

WIDE = 100  # columns from which on tables show the two kinds of error
_NARROWEST = 10  # columns that words are folded to


class _Table(Table):
    """A table that becomes one line of text for each row where the terminal is too narrow for columns."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._least() <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text(str(self.title), style="italic")
        yield from self._sentences()

    def _least(self) -> int:
        """The columns of a terminal that this takes with its words folded as much as is legible."""
        widths = [max(len(str(cell)) for cell in (column.header, *column.cells)) for column in self.columns]
        folded = [
            width if column.no_wrap else min(width, _NARROWEST)
            for column, width in zip(self.columns, widths, strict=True)
        ]
        return sum(folded) + 2 * (len(folded) - 1)

    def _sentences(self) -> Iterator[Text]:
        """Each row as the cells up to the first that has a title, and the others behind their titles."""
        titles = [str(column.header) for column in self.columns]
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            said = [(title, str(cell)) for title, cell in zip(titles, cells, strict=True) if str(cell)]
            name = next((i for i, (title, _) in enumerate(said) if title), 0)
            head = " ".join(cell for _, cell in said[: name + 1])
            if self.columns[0].no_wrap:  # a figure, which says nothing by itself
                head = f"{titles[0]} {head}"
            yield Text.assemble((head, "bold"), ": ", ", ".join(f"{title} {cell}" for title, cell in said[name + 1 :]))


def table_of(words: Iterable[str], figures: Iterable[str] = (), *, title: str | None = None) -> Table:
    """An empty table with columns of ``words``, and behind them of ``figures``; long names are folded, not cut."""
    table = _Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in words:
        table.add_column(column, overflow="fold")
    for column in figures:
        table.add_column(column, justify="right", no_wrap=True)
    return table
