"""What people see of a gate's decision, on stderr."""

from __future__ import annotations

from rich.console import Console

from robustbench_local.gates.decision import Decision
from robustbench_local.gates.limits import Outcome
from robustbench_local.io.escape import plain

MARKS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.UNDECIDED: "yellow", Outcome.NOT_COMPARABLE: "red"}


def show_decision(screen: Console, decision: Decision, *, asked_to_update: bool = False) -> None:
    """A line for each limit and each doubt, under a heading for each result, then the outcome."""
    for judged in decision.judged:
        screen.print(plain(judged.heading), style="bold", markup=False, soft_wrap=True)
        for check in judged.checks:
            screen.print(f"[{MARKS[check.outcome]}]{check.outcome.word:<16}[/]", end="")
            screen.print(plain(f"{check.limit}: {check.sentence}"), markup=False, soft_wrap=True)
        for doubt in judged.doubts:
            screen.print(f"[yellow]{'doubtful':<16}[/]", end="")
            screen.print(plain(doubt), markup=False, soft_wrap=True)
    if asked_to_update:
        told = (
            ", ".join(map(str, decision.updated))
            or "left as it was: only a result that the gate does not fail or "
            "refuse takes its place; to begin with other samples or settings, remove it first"
        )
        screen.print(f"baseline{' updated' if decision.updated else ''}: {plain(told)}", markup=False, soft_wrap=True)
    outcome = decision.outcome
    screen.print(f"gate: [{MARKS[outcome]}]{outcome.word}[/]", style="bold")
