"""What people see of a comparison, on stderr."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustbench_local.io.escape import plain
from robustbench_local.results.compare import Change, Comparison, Pair
from robustbench_local.results.pairing import Flip
from robustbench_local.results.schema import Accuracy

SHOWN = 10
"""Samples listed for each direction; the JSON has all."""
MANY, NARROW = 4, 80
"""From so many results on they are numbered; below so many columns an interval stands under its value."""


def show_comparison(screen: Console, comparison: Comparison) -> None:
    """The models in a table; of two also what changed, by class and by attack, and which samples flipped."""
    if comparison.refusals:
        for reason in comparison.refusals:
            screen.print("[red]not comparable[/]  ", end="")
            screen.print(plain(reason), markup=False, soft_wrap=True)
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
    """first: the least width of the first column."""
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
    """A row for each; where there are many they are numbered as they were given, and named below."""
    many, between = _many(comparison), "\n" if screen.width < NARROW else " "
    table = _table("" if many else "model", "clean", "robust", first=3 if many else 12)
    table.add_column("group", no_wrap=True, min_width=max(len(each.groups) for each in comparison.ranked))
    numbers = {path: number for number, path in enumerate(comparison.paths, start=1)}
    for each in comparison.ranked:
        name = str(numbers[each.path]) if many else f"{each.model} ({each.path})"
        table.add_row(Text(plain(name)), _cell(each.clean, between), _cell(each.robust, between), each.groups)
    screen.print(table)
    if many:
        for each in sorted(comparison.ranked, key=lambda each: numbers[each.path]):
            screen.print(plain(f"{numbers[each.path]}: {each.model} ({each.path})"), markup=False, soft_wrap=True)
    for each in comparison.ranked:
        why = f": {'; '.join(each.doubts)}" if each.doubts else ""
        screen.print(
            plain(f"verdict of {each.path}: {each.verdict}{why}"),
            markup=False,
            soft_wrap=True,
            style="yellow" if each.doubts else "dim",
        )
    screen.print(
        f"models that share a letter cannot be told apart by their robust accuracy at {1 - comparison.level:.3g} "
        "(paired exact tests, Holm over all pairs)",
        style="dim",
        markup=False,
        soft_wrap=True,
    )


def _many(comparison: Comparison) -> bool:
    return len(comparison.ranked) >= MANY


def _pair(screen: Console, comparison: Comparison, pair: Pair) -> None:
    first, second = comparison.paths
    screen.print(plain(f"from {first} to {second}"), style="bold", markup=False, soft_wrap=True)
    change = f"change [{100 * comparison.level:.4g} %]"
    table = _table("", "before", "now", change, "lost", "gained", "p exact", "p mid")
    _row(table, "clean", pair.clean)
    _row(table, "robust", pair.robust)
    table.add_section()
    for each in pair.classes:
        _row(table, f"class {each.name}", each.robust)
    screen.print(table)


def _row(table: Table, name: str, change: Change) -> None:
    interval = f"{100 * change.change:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    table.add_row(
        Text(plain(name)),
        f"{change.before:.1%}",
        f"{change.now:.1%}",
        interval,
        str(change.lost),
        str(change.gained),
        f"{change.p:.3g}",
        f"{change.p_mid:.3g}",
    )


def _attacks(screen: Console, comparison: Comparison) -> None:
    names = [str(number) if _many(comparison) else path.name for number, path in enumerate(comparison.paths, start=1)]
    table = _table("robust after", *names)
    for each in comparison.attacks:
        name = each.attack.replace(",", ", ").replace(":", ": ")
        table.add_row(Text(plain(name)), *("–" if left is None else f"{left:.1%}" for left in each.left))
    screen.print(table)


def _flips(screen: Console, flips: list[Flip]) -> None:
    for told, chosen in (("lost", [flip for flip in flips if flip.lost]), ("gained", [f for f in flips if not f.lost])):
        if not chosen:
            continue
        listed = ", ".join(f"{flip.index} (class {flip.name})" for flip in chosen[:SHOWN])
        more = f" and {len(chosen) - SHOWN} more, all with --json" if len(chosen) > SHOWN else ""
        screen.print(plain(f"{told}: {listed}{more}"), markup=False, soft_wrap=True)
