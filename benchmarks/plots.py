"""The strength comparison as tables and as a picture."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
NAMED = 6
"""Up to this many samples are listed by index."""
WIDTH = 110
"""Columns that the tables need; a pipe is taken to have 80."""


def passes(row: Row) -> float:
    """Forward and backward passes per image that was attacked, which are those that were classified correctly."""
    return (row["forward_passes"] + row["backward_passes"]) / max(row["clean"], 1)


def robust(row: Row) -> float:
    """Robust accuracy in percent of all images."""
    return 100 * row["robust"] / row["images"]


def show(rows: list[Row], *, base: str, reference: str) -> None:
    """A table per subject on stdout; cost is set against `base`, verdicts against `reference`."""
    console = Console(width=max(Console().width, WIDTH))
    for subject, mine in groupby(rows, itemgetter("subject")):
        found = {row["attacker"]: row for row in mine}
        console.print(_table(subject, found, base, reference))
    console.print(f"×: the cost over that of {base}. -N: fooled here, robust under {reference}; +N: the reverse.")


def _table(subject: str, found: dict[str, Row], base: str, reference: str) -> Table:
    first = next(iter(found.values()))
    clean = next((f", {row['clean']} clean" for row in found.values() if "clean" in row), "")
    title = f"{subject} · {first['norm']} {first['eps']} · {first['images']} images{clean} · {first['about']}"
    table = Table(title=title, title_justify="left")
    table.add_column("attacker", no_wrap=True)
    for name in ("robust %", "passes/image", "× passes", "seconds", "× seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdicts")
    against, truth = _ran(found.get(base)), _ran(found.get(reference))
    for attacker, row in found.items():
        if "error" in row:
            table.add_row(attacker, "–", "–", "–", "–", "–", row["error"])
            continue
        table.add_row(
            attacker,
            f"{robust(row):.1f}",
            f"{passes(row):,.0f}",
            f"{passes(row) / passes(against):.3f}" if against else "–",
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / against['seconds']:.3f}" if against else "–",
            _differences(row["standing"], truth["standing"]) if truth else "–",
        )
    return table


def _ran(row: Row | None) -> Row | None:
    return None if row is None or "error" in row else row


def _differences(here: list[int], there: list[int]) -> str:
    """Samples on which two attackers disagree, some by name."""
    fell, stood = sorted(set(there) - set(here)), sorted(set(here) - set(there))
    return "  ".join(filter(None, (_listed("-", fell), _listed("+", stood)))) or "same"


def _listed(sign: str, samples: list[int]) -> str:
    if len(samples) > NAMED:
        return f"{sign}{len(samples)} samples"
    return " ".join(f"{sign}{sample}" for sample in samples)


def draw(rows: list[Row], path: Path) -> None:
    """One panel per subject: cost per image to the right, robust accuracy upwards, so the best is at the lower left.

    Names are in one legend: attackers of equal strength are on one line, where labels would overlap.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ran = [row for row in rows if "error" not in row]
    if not ran:
        raise SystemExit("there is nothing to draw: no attacker ran on any subject")
    panels = [(name, list(mine)) for name, mine in groupby(ran, itemgetter("subject"))]
    attackers = list(dict.fromkeys(row["attacker"] for row in ran))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    legend = 0.3 + 0.2 * -(-len(attackers) // (2 * columns))  # inches
    size = (4.6 * columns, 3.3 * lines + legend)
    figure, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    marks = {}
    for axis, (name, mine) in zip(axes.flat, panels, strict=False):
        for row in mine:
            style = _style(row["attacker"], attackers.index(row["attacker"]))
            marks[row["attacker"]] = axis.scatter(passes(row), robust(row), **style)
        low, high = min(map(robust, mine)), max(map(robust, mine))
        axis.set(xscale="log", ylim=(max(low - 6, -4), min(high + 6, 104)))
        axis.margins(x=0.12)
        axis.grid(alpha=0.3)
        axis.set_title(f"{name}\n{mine[0]['norm']} {mine[0]['eps']}, {mine[0]['images']} images", fontsize=9)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.supxlabel("forward + backward passes per attacked image", fontsize=10)
    figure.supylabel("robust accuracy, %", fontsize=10)
    figure.legend(
        [marks[name] for name in attackers],
        attackers,
        loc="outside upper center",
        ncols=2 * columns,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _style(attacker: str, position: int) -> dict[str, Any]:
    """Ours are full stars. Peers are outlines of several sizes, so that those at one place are all seen."""
    if attacker.startswith("robust "):
        return {"marker": "*", "s": 130, "color": f"C{position}", "zorder": 3}
    return {
        "marker": "osD^vPXhp"[position % 9],
        "s": 30 + 12 * position,
        "facecolors": "none",
        "edgecolors": f"C{position}",
        "linewidths": 1.4,
    }
