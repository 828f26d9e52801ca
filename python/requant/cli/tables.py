"""Tables on a terminal: words to the left, where they may wrap, and figures to the right, which do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDE = 100  # columns from which on tables show the two kinds of error


def table_of(words: Iterable[str], figures: Iterable[str] = (), *, title: str | None = None) -> Table:
    """An empty table with columns of ``words``, and behind them of ``figures``; long names are folded, not cut."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in words:
        table.add_column(column, overflow="fold")
    for column in figures:
        table.add_column(column, justify="right", no_wrap=True)
    return table
