"""What a terminal shows of a comparison, on stderr."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustbench_local.display.fitted_table import Row, fitted_table
from robustbench_local.display.result_table import spaced
from robustbench_local.io.escape import plain
from robustbench_local.results.compare import Change, Comparison, Pair
from robustbench_local.results.pairing import Flip
from robustbench_local.results.schema import Accuracy

SHOWN = 10
"""How many samples are listed for each direction; the JSON has all."""
PAIR_LAYOUTS = (((0,), (1,), (2,), (3,), (4,), (5,), (6,)), ((0, 1), (2,), (3, 4), (5, 6)), ((0, 1, 2, 3, 4, 5, 6),))
"""Which numbers of a change share a column."""
MANY, NARROW = 4, 80
"""More results than this are numbered, not named; in a terminal narrower than this, intervals are below values."""


def show_comparison(screen: Console, comparison: Comparison) -> None:
    """A table of the models; for two results also the changes by class, and the samples that changed."""
    if comparison.refusals:
        for reason in comparison.refusals:
            screen.print("[red]NOT COMPARABLE[/]  ", end="")
            screen.print(plain(reason.sentence), markup=False, soft_wrap=True)
        return
    screen.print(
        plain(f"{comparison.data} ({comparison.n} images), {comparison.threat}"),
        style="bold",
        markup=False,
        soft_wrap=True,
    )
    _models(screen, comparison)
    if comparison.pair is not None:
        _pair(screen, comparison, comparison.pair)
    _attacks(screen, comparison)
    if comparison.pair is not None:
        _flips(screen, comparison.pair.flips)


def _table(*columns: str, first: int = 12) -> Table:
    """A table with left-aligned names and right-aligned numbers. first: the least width of the first column."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, name in enumerate(columns):
        table.add_column(
            Text(plain(name)),
            justify="right" if position else "left",
            no_wrap=position > 0,
            overflow="fold",
            min_width=0 if position else first,
        )
    return table


def _cell(accuracy: Accuracy, between: str) -> str:
    return f"{accuracy.value:.1%}{between}[{accuracy.confidence.low:.1%}, {accuracy.confidence.high:.1%}]"


def _models(screen: Console, comparison: Comparison) -> None:
    """A row for each model. Many models are numbered in the order of the files, and named below the table."""
    many, between = _many(comparison), "\n" if screen.width < NARROW else " "
    table = _table("" if many else "model", "clean", "robust", first=3 if many else 12)
    table.add_column("group", no_wrap=True, min_width=max(5, *(len(each.groups) for each in comparison.ranked)))
    numbers = {path: number for number, path in enumerate(comparison.paths, start=1)}
    for each in comparison.ranked:
        name = str(numbers[each.path]) if many else f"{each.model} ({each.path})"
        table.add_row(Text(plain(name)), _cell(each.clean, between), _cell(each.robust, between), each.groups)
    screen.print(table)
    if many:
        for each in sorted(comparison.ranked, key=lambda each: numbers[each.path]):
            screen.print(plain(f"{numbers[each.path]}: {each.model} ({each.path})"), markup=False, soft_wrap=True)
    for each in comparison.ranked:
        reasons = "; ".join(warning.sentence for warning in each.warnings)
        screen.print(
            plain(f"verdict of {each.path}: {each.verdict}{f': {reasons}' if reasons else ''}"),
            markup=False,
            soft_wrap=True,
            style="yellow" if reasons else "dim",
        )
    screen.print(
        "models that share a letter do not differ significantly in robust accuracy (paired exact tests, Holm, "
        f"α = {1 - comparison.level:.3g})",
        style="dim",
        markup=False,
        soft_wrap=True,
    )


def _many(comparison: Comparison) -> bool:
    return len(comparison.ranked) >= MANY


def _pair(screen: Console, comparison: Comparison, pair: Pair) -> None:
    first, second = comparison.paths
    screen.print(plain(f"from {first} to {second}"), style="bold", markup=False, soft_wrap=True)
    interval = f"change [{100 * comparison.level:.4g} %]"
    heading = Row("", ("before", "now", interval, "lost", "gained", "p exact", "p mid"))
    rows = [_change("clean", pair.clean), _change("robust", pair.robust)]
    rows += [_change(f"class {each.name}", each.robust) for each in pair.classes]
    screen.print(fitted_table(heading, rows, PAIR_LAYOUTS, screen.width, name=12))


def _change(name: str, change: Change) -> Row:
    interval = f"{100 * change.change:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    p_values = (f"{change.p:.3g}", f"{change.p_mid:.3g}")
    counts = (str(change.lost), str(change.gained))
    return Row(name, (f"{change.before:.1%}", f"{change.now:.1%}", interval, *counts, *p_values))


def _attacks(screen: Console, comparison: Comparison) -> None:
    names = [str(number) if _many(comparison) else path.name for number, path in enumerate(comparison.paths, start=1)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("robust after", min_width=12, overflow="fold")
    for name in names:
        table.add_column(Text(plain(name)), justify="right", min_width=6, overflow="fold")
    for each in comparison.attacks:
        attack = spaced(each.attack)
        table.add_row(Text(plain(attack)), *("–" if left is None else f"{left:.1%}" for left in each.left))
    screen.print(table)


def _flips(screen: Console, flips: list[Flip]) -> None:
    for direction, lost in (("lost", True), ("gained", False)):
        samples = [flip for flip in flips if flip.lost is lost]
        if not samples:
            continue
        names = ", ".join(f"{flip.index} (class {flip.name})" for flip in samples[:SHOWN])
        more = f" and {len(samples) - SHOWN} more, all with --json" if len(samples) > SHOWN else ""
        screen.print(plain(f"{direction}: {names}{more}"), markup=False, soft_wrap=True)
