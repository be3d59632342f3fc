"""What people see: tables and progress, on stderr."""
from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from robustbench_local.gate import Decision, Outcome
from robustbench_local.observer import Observer
from robustbench_local.result import Accuracy, Diagnostic, Result

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}
COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skipped": "dim"}


def console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=False)


class ProgressObserver(Observer):
    """A bar for each stage with images a second, running robust accuracy and time left; nothing off a terminal."""

    def __init__(self, screen: Console, samples: int):
        self._samples = samples
        self._progress = Progress(
            TextColumn("{task.description:<28}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"), TextColumn("standing {task.fields[standing]}"), TimeRemainingColumn(),
            console=screen, transient=True, disable=not screen.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, stage: str, total: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(stage, total=total, speed="", standing="")

    def advance(self, finished: int, standing: int) -> None:
        if self._task is None:
            return
        speed = self._progress.tasks[-1].speed
        self._progress.update(
            self._task, advance=finished, standing=f"{standing / self._samples:.1%}",
            speed=f"{speed:.0f} images/s" if speed else "",
        )


def percent(accuracy: Accuracy) -> str:
    low, high = accuracy.confidence.low, accuracy.confidence.high
    return f"{accuracy.value:6.1%}  [{low:.1%}, {high:.1%}]"


def show_result(screen: Console, result: Result) -> None:
    """The table of an evaluation: clean, after each attack, robust; intervals and cost."""
    threat = result.threat_model
    goal = "" if threat.goal == "untargeted" else f", {threat.goal.source} → {threat.goal.target}"
    table = Table(
        title=f"{result.model.name} on {result.data.name} ({result.data.n} of {result.data.available} images), "
        f"{NORMS[threat.norm]} {threat.eps_text}{goal}",
        title_justify="left", title_style="bold",
    )
    for name, side in (("", "left"), ("accuracy", "right"), ("95 % interval", "right"), ("fooled", "right"),
                       ("forward", "right"), ("backward", "right"), ("seconds", "right")):
        table.add_column(name, justify=side, no_wrap=bool(name))  # type: ignore[arg-type]
    table.add_row("clean", *percent(result.clean_accuracy).split("  ", 1), "", f"{result.clean_accuracy.n:,}", "", "")
    for attack in result.attacks:
        after = Accuracy.of(round(attack.robust_accuracy_after * result.data.n), result.data.n)
        table.add_row(
            f"after {attack.name}", *percent(after).split("  ", 1), f"{attack.fooled} of {attack.attacked}",
            f"{attack.forward_passes:,}", f"{attack.backward_passes:,}", f"{attack.seconds:.1f}",
        )
    cost = result.cost
    table.add_section()
    fooled = result.clean_accuracy.correct - result.robust_accuracy.correct
    table.add_row(
        "robust", *percent(result.robust_accuracy).split("  ", 1), f"{fooled} of {result.clean_accuracy.correct}",
        f"{cost.forward_passes:,}", f"{cost.backward_passes:,}", f"{cost.seconds:.1f}", style="bold",
    )
    screen.print(table)
    protocol = result.protocol
    suite = f"{protocol.name}/{protocol.version}" if protocol.version else protocol.name
    screen.print(
        f"protocol {suite} ({protocol.sha256[:12]}), seed {result.config['seed']}, device {result.config['device']}; "
        f"no attack of this protocol fooled the robust ones – another might.", style="dim", markup=False,
    )
    show_findings(screen, [finding for finding in result.diagnostics if finding.status in ("warn", "fail")])


def show_findings(screen: Console, findings: list[Diagnostic]) -> None:
    """One line for each finding: its status, what was checked and measured, and the mend."""
    for finding in findings:
        value = f" ({finding.value:.4g})" if isinstance(finding.value, float) else f" ({finding.value})"
        screen.print(f"[{COLOURS[finding.status]}]{finding.status}[/]", end="  ")
        screen.print(f"{finding.check}{value}{': ' if finding.advice else ''}{finding.advice}", markup=False)


def show_decision(screen: Console, decision: Decision) -> None:
    """A line for each limit, then the outcome."""
    marks = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.UNDECIDED: "yellow", Outcome.NOT_COMPARABLE: "red"}
    for check in decision.checks:
        word = check.outcome.name.lower().replace("_", " ")
        screen.print(f"[{marks[check.outcome]}]{word:<14}[/]", end="")
        screen.print(f"{check.limit}: {check.sentence}", markup=False)
    outcome = decision.outcome
    screen.print(f"gate: [{marks[outcome]}]{outcome.name.lower().replace('_', ' ')}[/]", style="bold")


def write_json(text: str) -> None:
    """The machine's output: on stdout, alone."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
