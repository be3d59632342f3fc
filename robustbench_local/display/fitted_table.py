"""Tables that fit a terminal: where the columns do not fit side by side, several numbers share a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from robustbench_local.io.escape import plain

LEAST_NAME = 12
"""Width that the names get at least; longer ones continue on the next line."""

Layout = Sequence[Sequence[int]]
"""For each column the positions of its cells, which are put one under the other."""


@dataclass(frozen=True)
class Row:
    """A line of a table. section: a gap comes before it. total: a section of its own, in bold."""

    name: str
    cells: tuple[str, ...]
    total: bool = False
    section: bool = False

    def stacked(self, layout: Layout) -> list[str]:
        """The cells of each column in a layout, without the empty lines before the first one that is not."""
        return ["\n".join(self.cells[position] for position in column).lstrip("\n") for column in layout]


def fitted_table(heading: Row, rows: Sequence[Row], layouts: Sequence[Layout], width: int, *, name: int) -> Table:
    """A table in at most `width` columns; no number is cut off as long as the last layout fits.

    layouts: the widest first; the first one that fits is used. name: the width that names get at least in the first.
    """
    for layout in layouts:
        least = name if layout is layouts[0] else LEAST_NAME
        if _width(layout, least, [heading, *rows]) <= width:
            break
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column(heading.name, min_width=least, overflow="fold")
    for title in heading.stacked(layout):
        table.add_column(Text(title), justify="right", no_wrap=True)
    for row in rows:
        if row.total or row.section:
            table.add_section()
        table.add_row(Text(plain(row.name)), *row.stacked(layout), style="bold" if row.total else "")
    return table


def _width(layout: Layout, name: int, rows: Sequence[Row]) -> int:
    """The width of a table: its columns are as wide as their longest cells, with two spaces between."""
    columns = [max(len(row.cells[position]) for row in rows for position in column) for column in layout]
    return name + sum(2 + column for column in columns)
