"""The table of an evaluation: the clean pass, each attack, and all of them, in the width of a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from robustbench_local.io.escape import plain
from robustbench_local.results.schema import Accuracy, Result

HEADINGS = ("accuracy", "95 % interval", "fooled", "passes", "seconds")
LAYOUTS = (((0,), (1,), (2,), (3,), (4,)), ((0, 1), (2,), (3, 4)), ((0, 1, 2, 3, 4),))
"""Which numbers share a column, one under the other; the first layout that fits is taken."""
LEAST_NAME = 12
"""Width that the names get at least; longer ones continue on the next line."""
GOOD_NAME = 24
"""Width that the names get where each number has a column of its own."""


@dataclass(frozen=True)
class Row:
    """A line of the table; `cells` in the order of HEADINGS."""

    name: str
    cells: tuple[str, str, str, str, str]

    def stacked(self, layout: tuple[tuple[int, ...], ...]) -> list[str]:
        """The cells of each column in a layout."""
        return ["\n".join(self.cells[position] for position in column) for column in layout]


def result_table(result: Result, width: int) -> Table:
    """The table in at most `width` columns, down to about 32; no number is cut off."""
    heading, rows = Row("after", HEADINGS), _rows(result)
    for layout in LAYOUTS:
        name = GOOD_NAME if layout == LAYOUTS[0] else LEAST_NAME
        if _width(layout, name, [heading, *rows]) <= width:
            break
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(heading.name, min_width=name, overflow="fold")
    for title in heading.stacked(layout):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows[:-1]:
        table.add_row(Text(plain(row.name).replace(",", ", ").replace(":", ": ")), *row.stacked(layout))
    table.add_section()
    table.add_row(rows[-1].name, *rows[-1].stacked(layout), style="bold")
    return table


def _width(layout: tuple[tuple[int, ...], ...], name: int, rows: list[Row]) -> int:
    """The width of a table: every column is as wide as its longest number, and one more separates it from the next."""
    columns = [max(len(row.cells[position]) for row in rows for position in column) for column in layout]
    return 2 + name + sum(1 + column for column in columns)


def _rows(result: Result) -> list[Row]:
    clean, robust, cost = result.clean_accuracy, result.robust_accuracy, result.cost
    rows = [Row("clean", (*_accuracy(clean), "", f"{clean.n:,}", ""))]
    for attack in result.attacks:
        if attack.role in ("diagnostic", "adaptive") and not attack.fooled:
            continue
        after = Accuracy.of(round(attack.robust_accuracy_after * result.data.n), result.data.n)
        passes = f"{attack.forward_passes + attack.backward_passes:,}"
        fooled = f"{attack.fooled} of {attack.attacked}"
        rows.append(Row(attack.name, (*_accuracy(after), fooled, passes, f"{attack.seconds:.1f}")))
    fooled = f"{clean.correct - robust.correct} of {clean.correct}"
    passes = f"{cost.forward_passes + cost.backward_passes:,}"
    return [*rows, Row("all attacks", (*_accuracy(robust), fooled, passes, f"{cost.seconds:.1f}"))]


def _accuracy(accuracy: Accuracy) -> tuple[str, str]:
    return f"{accuracy.value:.1%}", f"[{accuracy.confidence.low:.1%}, {accuracy.confidence.high:.1%}]"
