"""Tables on a terminal: words to the left, where they may wrap, and figures to the right, which do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from requant.cli.output import CONTROLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console, ConsoleOptions, RenderResult

WIDE = 100  # columns from which on tables show the two kinds of error
_NARROWEST = 10  # columns that words are folded to
_FRAME = 6  # columns that a frame takes beside its title


class _Table(Table):
    """A table that becomes one line of text for each row where the terminal is too narrow for columns.

    Its ``heading`` may be wider than it is.
    """

    heading: str | None = None

    def add_row(self, *cells: Any, **options: Any) -> None:
        """A row of ``cells``; control characters in them are pictures, before anything is measured."""
        super().add_row(*(cell.translate(CONTROLS) if isinstance(cell, str) else cell for cell in cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.heading:
            yield Text(self.heading, style="italic")
        if not self.rows:
            return
        if self._least() <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        yield from self._sentences()

    def _least(self) -> int:
        """The columns of a terminal that this takes with its words folded as much as is legible."""
        widths = [max(cell_len(str(cell)) for cell in (column.header, *column.cells)) for column in self.columns]
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
    table = _Table(box=None, pad_edge=False)
    table.heading = title
    for column in words:
        table.add_column(column, overflow="fold")
    for column in figures:
        table.add_column(column, justify="right", no_wrap=True)
    return table


class Facts:
    """A box of facts, each a label and what there is to say; long words are folded, not cut.

    A title that its frame cannot hold, such as a long path, stands above it.
    """

    def __init__(self, title: str, *, border_style: str = "none") -> None:
        self._title, self._border_style = title.translate(CONTROLS), border_style
        self._rows: list[tuple[str, ...]] = []

    def add(self, label: str, *cells: str) -> None:
        """Say something behind ``label``."""
        self._rows.append(tuple(text.translate(CONTROLS) for text in (label, *cells)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        grid = Table.grid(padding=(0, 2))
        for i in range(max(map(len, self._rows), default=1)):
            grid.add_column(overflow="fold", style="none" if i else "bold")
        for row in self._rows:
            grid.add_row(*row)
        title: Text | None = Text(self._title)
        if cell_len(self._title) + _FRAME > options.max_width:
            yield Text(self._title, overflow="fold")
            title = None
        yield Panel(grid, title=title, title_align="left", border_style=self._border_style)
