"""What a terminal shows of an evaluation: progress, the result table and the diagnostics, on stderr."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from robustbench_local.display.console import ProgressContext
from robustbench_local.display.result_table import cost_of_looking, result_table
from robustbench_local.engine.observer import Observer
from robustbench_local.io.escape import plain
from robustbench_local.results import checks
from robustbench_local.results.pairing import threat_name
from robustbench_local.results.protocol_order import protocol_name
from robustbench_local.results.schema import Diagnostic, Result

COLORS = {"pass": "green", "warn": "yellow", "fail": "red", "skipped": "dim"}
VERDICT_COLORS = {"trusted": "green", "doubtful": "yellow", "not-trusted": "red", "not-assessed": "dim"}


class ProgressObserver(ProgressContext, Observer):
    """A progress bar for each stage: images per second, robust accuracy so far, time left. On a terminal only."""

    def __init__(self, screen: Console, samples: int):
        """Prepare the bar. samples: how many images the evaluation has."""
        self._samples = samples
        self._progress = Progress(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("robust {task.fields[robust]}"),
            TimeRemainingColumn(),
            console=screen,
            transient=True,
            disable=not screen.is_terminal,
        )
        self._task: TaskID | None = None

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        # What an interrupted session finished counts as done, but not for the speed.
        self._task = self._progress.add_task(stage, total=total, completed=done, speed="", robust="")

    def advance(self, finished: int, robust: int) -> None:
        if self._task is None:
            return
        speed = self._progress.tasks[-1].speed
        self._progress.update(
            self._task,
            advance=finished,
            robust=f"{robust / self._samples:.1%}",
            speed=f"{speed:.0f} images/s" if speed else "",
        )


def show_result(screen: Console, result: Result) -> None:
    """Model, data and threat model; the table of attacks; the protocol; the verdict and the failed checks."""
    screen.print(
        plain(
            f"{result.model.name} on {result.data.name} ({result.data.n} of {result.data.available} images), "
            f"{threat_name(result.threat_model)}"
        ),
        style="bold",
        markup=False,
        soft_wrap=True,
    )
    screen.print(result_table(result, screen.width))
    _show_protocol(screen, result)
    _show_verdict(screen, result)
    show_findings(screen, [each for each in result.diagnostics if _deserves_a_line(each)])


def _deserves_a_line(finding: Diagnostic) -> bool:
    return finding.status in ("warn", "fail") or (finding.status == "pass" and bool(finding.advice))


def _show_protocol(screen: Console, result: Result) -> None:
    lines = [
        f"protocol {protocol_name(result.protocol)} ({result.protocol.sha256[:12]}), seed {result.config['seed']}, "
        f"device {result.config['device']}, search in {result.config.get('precision', 'fp32')}"
    ]
    if looking := cost_of_looking(result.cost):
        lines.append(looking)
    if result.robust_accuracy.correct:
        lines.append("robust accuracy is an upper bound: stronger attacks may lower it")
    if result.sequential is not None:
        n, available = result.data.n, result.data.available
        lines.append(
            f"stopped after {n} of {available} images in random order: {result.sequential.gate} is decided"
            if n < available
            else f"all {n} images were needed to decide {result.sequential.gate}"
        )
    for line in lines:
        screen.print(plain(line), style="dim", markup=False, soft_wrap=True)


def _show_verdict(screen: Console, result: Result) -> None:
    status = result.verdict.status
    passed = sum(each.status == "pass" for each in result.diagnostics)
    assessed = "" if was_assessed(result) else "; gradient masking was not checked"
    line = Text(f"verdict: {status} ({passed} checks passed{assessed})", style="bold")
    line.stylize(VERDICT_COLORS[status], len("verdict: "), len("verdict: ") + len(status))
    screen.print(line, soft_wrap=True)


def was_assessed(result: Result) -> bool:
    """Whether the gradient-masking checks ran after the attacks."""
    return any(each.slug == checks.GROWTH for each in result.diagnostics)


def show_findings(screen: Console, findings: Sequence[Diagnostic]) -> None:
    """One line for each check: PASS, WARN, FAIL or SKIPPED, its outcome, and the measured value and the advice."""
    for each in findings:
        detail = f": {each.advice}" if each.advice else ""
        if each.status == "pass" and each.value is not None:
            value = f"{each.value:.4g}" if isinstance(each.value, float) else str(each.value)
            detail = f" ({value}){detail}"
        screen.print(f"[{COLORS[each.status]}]{each.status.upper():<8}[/]", end="")
        screen.print(plain(f"{each.sentence}{detail}"), markup=False, soft_wrap=True)
