"""What people see: tables and progress, on stderr."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from robustbench_local.display.console import ProgressContext
from robustbench_local.engine.observer import Observer
from robustbench_local.io.escape import plain
from robustbench_local.results import checks
from robustbench_local.results.schema import Accuracy, Diagnostic, Result

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}
COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skipped": "dim"}


class ProgressObserver(ProgressContext, Observer):
    """A bar for each stage with images a second, running robust accuracy and time left; nothing off a terminal."""

    def __init__(self, screen: Console, samples: int):
        self._samples = samples
        self._progress = Progress(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("standing {task.fields[standing]}"),
            TimeRemainingColumn(),
            console=screen,
            transient=True,
            disable=not screen.is_terminal,
        )
        self._task: TaskID | None = None

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(stage, total=total, completed=done, speed="", standing="")

    def advance(self, finished: int, robust: int) -> None:
        if self._task is None:
            return
        speed = self._progress.tasks[-1].speed
        self._progress.update(
            self._task,
            advance=finished,
            standing=f"{robust / self._samples:.1%}",
            speed=f"{speed:.0f} images/s" if speed else "",
        )


def _cells(accuracy: Accuracy) -> tuple[str, str]:
    return f"{accuracy.value:.1%}", f"[{accuracy.confidence.low:.1%}, {accuracy.confidence.high:.1%}]"


def show_result(screen: Console, result: Result) -> None:
    """The table of an evaluation: clean, after each attack, robust; intervals and cost."""
    threat = result.threat_model
    goal = "" if threat.goal == "untargeted" else f", {threat.goal.source} → {threat.goal.target}"
    screen.print(
        f"{plain(result.model.name)} on {plain(result.data.name)} ({result.data.n} of {result.data.available} images), "
        f"{NORMS[threat.norm]} {threat.eps_text}{goal}",
        style="bold",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("after", min_width=24, overflow="fold")
    # A narrow terminal loses what a run cost before it loses what the run found.
    columns = ["accuracy", "95 % interval", "fooled", "passes", "seconds"][: 5 if screen.width >= 80 else 2]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)

    def row(name: str | Text, *cells: str, style: str = "") -> None:
        table.add_row(name, *cells[: len(columns)], style=style)

    row("the clean pass", *_cells(result.clean_accuracy), "", f"{result.clean_accuracy.n:,}", "")
    for attack in result.attacks:
        if attack.role in ("diagnostic", "adaptive") and not attack.fooled:
            continue
        row(
            Text(attack.name.replace(",", ", ").replace(":", ": ")),
            *_cells(Accuracy.of(round(attack.robust_accuracy_after * result.data.n), result.data.n)),
            f"{attack.fooled} of {attack.attacked}",
            f"{attack.forward_passes + attack.backward_passes:,}",
            f"{attack.seconds:.1f}",
        )
    cost = result.cost
    table.add_section()
    fooled = result.clean_accuracy.correct - result.robust_accuracy.correct
    row(
        "all: robust",
        *_cells(result.robust_accuracy),
        f"{fooled} of {result.clean_accuracy.correct}",
        f"{cost.forward_passes + cost.backward_passes:,}",
        f"{cost.seconds:.1f}",
        style="bold",
    )
    screen.print(table)
    protocol = result.protocol
    suite = f"{protocol.name}/{protocol.version}" if protocol.version else protocol.name
    screen.print(
        f"protocol {suite} ({protocol.sha256[:12]}), seed {result.config['seed']}, device {result.config['device']}, "
        f"searched in {result.config.get('precision', 'fp32')}"
        + (
            "; no attack of this protocol fooled the robust ones – another might."
            if result.robust_accuracy.correct
            else "."
        ),
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    if result.sequential is not None:
        n, available = result.data.n, result.data.available
        screen.print(
            f"stopped after {n} of {available} images, in random order: {plain(result.sequential.gate)} is decided"
            if n < available
            else f"all {n} images were seen, in random order",
            style="dim",
            markup=False,
            soft_wrap=True,
        )
    status = result.verdict.status
    colour = {"trusted": "green", "doubtful": "yellow", "not-trusted": "red"}.get(status, "dim")
    passed = sum(finding.status == "pass" for finding in result.diagnostics)
    looked = "" if was_assessed(result) else "; nothing was looked at after the attacks"
    screen.print(f"verdict: [{colour}]{status}[/] ({passed} checks passed{looked})", style="bold")
    show_findings(screen, [finding for finding in result.diagnostics if finding.status in ("warn", "fail")])


def was_assessed(result: Result) -> bool:
    """Whether the outcome was looked at after the attacks."""
    return any(finding.slug == checks.GROWTH for finding in result.diagnostics)


def show_findings(screen: Console, findings: list[Diagnostic]) -> None:
    """One line for each finding: its status, what was checked and measured, and the mend."""
    for finding in findings:
        value = f" ({finding.value:.4g})" if isinstance(finding.value, float) else f" ({finding.value})"
        detail = f": {finding.advice}" if finding.status in ("warn", "fail") else value
        screen.print(f"[{COLOURS[finding.status]}]{finding.status.upper():<8}[/]", end="")
        screen.print(plain(f"{finding.sentence}{detail}"), markup=False, soft_wrap=True)
