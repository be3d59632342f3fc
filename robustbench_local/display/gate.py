"""What a terminal shows of a gate's decision, on stderr."""

from __future__ import annotations

from rich.console import Console

from robustbench_local.gates.decision import Decision
from robustbench_local.gates.limits import Outcome
from robustbench_local.io.escape import plain

COLORS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.UNDECIDED: "yellow", Outcome.NOT_COMPARABLE: "red"}
WIDTH = 16
"""Of the column of outcomes; the longest is NOT COMPARABLE."""


def show_decision(screen: Console, decision: Decision, *, update_requested: bool = False) -> None:
    """A heading for each result, a line for each of its limits and warnings, then the outcome.

    update_requested: say too which baselines were updated.
    """
    for each in decision.results:
        screen.print(plain(each.heading), style="bold", markup=False, soft_wrap=True)
        for check in each.checks:
            screen.print(f"[{COLORS[check.outcome]}]{check.outcome.word.upper():<{WIDTH}}[/]", end="")
            screen.print(plain(f"{check.limit}: {check.sentence}"), markup=False, soft_wrap=True)
        for warning in each.warnings:
            screen.print(f"[yellow]{'WARN':<{WIDTH}}[/]", end="")
            screen.print(plain(warning.sentence), markup=False, soft_wrap=True)
    if update_requested:
        files = ", ".join(map(str, decision.updated))
        screen.print(
            f"baseline updated: {plain(files)}"
            if files
            else "baseline not updated: a result that fails the gate or is not comparable does not replace it; to "
            "start with other samples or settings, remove the baseline first",
            markup=False,
            soft_wrap=True,
        )
    outcome = decision.outcome
    screen.print(f"gate: [{COLORS[outcome]}]{outcome.word}[/]", style="bold")
