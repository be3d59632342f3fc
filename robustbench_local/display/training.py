"""The display of a training: a line for every epoch and a progress bar for the current one, on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from robustbench_local.display.console import ProgressContext
from robustbench_local.training.grid_search import SearchObserver, Trial
from robustbench_local.training.metrics import EpochReport, TrainingObserver
from robustbench_local.training.model_card import RESULT, WEIGHTS
from robustbench_local.training.run import TrainingRun


class EpochTable(ProgressContext, TrainingObserver):
    """Shows epoch, loss and its parts, hold-out accuracies and images a second; on a terminal also the time left."""

    def __init__(self, screen: Console):
        self._screen = screen
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=screen,
            transient=True,
            disable=not screen.is_terminal,
        )
        self._task: TaskID | None = None
        self._epochs = 0

    def begin(self, epochs: int, images: int, done: int = 0) -> None:
        self._epochs = epochs
        self._task = self._progress.add_task(
            f"epoch {min(done + 1, epochs)} of {epochs}", total=epochs * images, completed=done * images, loss=""
        )
        plural = "s" * (epochs != 1)
        self._screen.print(f"{epochs} epoch{plural} of {images:,} images; accuracies are on the hold-out")
        if done:
            self._screen.print(f"resuming after epoch {done}")

    def advance(self, images: int, loss: float) -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=images, loss=f"{loss:.3f}")

    def epoch(self, report: EpochReport) -> None:
        columns = [f"epoch {report.epoch:>3}", f"loss {report.loss:.3f}"]
        if len(report.parts) > 1:
            columns += [f"{name} {value:.3f}" for name, value in report.parts.items()]
        columns.append(f"clean {report.clean_accuracy.value:6.1%}")
        if report.robust_accuracy is not None:
            columns.append(f"robust {report.robust_accuracy.value:6.1%}")
        if report.noisy_accuracy is not None:
            columns.append(f"under noise {report.noisy_accuracy.value:6.1%}")
        columns.append(f"{report.images_per_second:,.0f} images/s")
        columns += ["best so far"] * report.chosen
        self._screen.print("   ".join(columns), markup=False, soft_wrap=True)
        for warning in report.warnings:
            self.warn(warning)
        if self._task is not None and report.epoch < self._epochs:
            self._progress.update(self._task, description=f"epoch {report.epoch + 1} of {self._epochs}")

    def warn(self, text: str) -> None:
        self._screen.print(text, style="yellow", markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._screen.print(text, markup=False, soft_wrap=True)


class SearchDisplay(SearchObserver):
    """Shows the trials of a grid search, and at the end their ranking."""

    def __init__(self, screen: Console):
        self._screen = screen

    def trial(self, number: int, trials: int, trial: Trial) -> EpochTable:
        self._screen.print(
            f"trial {number} of {trials}: {trial.description}", style="bold", markup=False, soft_wrap=True
        )
        return EpochTable(self._screen)

    def failed(self, trial: Trial) -> None:
        self._screen.print(f"failed: {trial.failed}", style="yellow", markup=False, soft_wrap=True)

    def ranked(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self._screen.print(f"{_accuracy(trial)}   {trial.description}", markup=False, soft_wrap=True)


def _accuracy(trial: Trial) -> str:
    if trial.chosen is None:
        return f"{'failed':22}"
    report = trial.chosen
    accuracy = report.robust_accuracy or report.noisy_accuracy or report.clean_accuracy
    return f"{accuracy.value:6.1%} on the hold-out"


def show_training(screen: Console, run: TrainingRun, *, curves: Path | None) -> None:
    """Show which epoch was chosen, its accuracies beside the last epoch's, and where the files are.

    run: an evaluated one. curves: the picture of the training curves; None where there is none.
    """
    card, folder = run.card, run.folder
    assert card.chosen is not None
    assert card.evaluation is not None
    screen.print(f"epoch {card.chosen.epoch} of {card.recipe.epochs} was chosen on the hold-out", soft_wrap=True)
    if (last := card.last_evaluation) is not None:
        evaluation = card.evaluation
        screen.print(
            f"the last epoch on the same images: clean {last.clean_accuracy.value:.1%}, robust "
            f"{last.robust_accuracy.value:.1%}; the chosen one: clean {evaluation.clean_accuracy.value:.1%}, robust "
            f"{evaluation.robust_accuracy.value:.1%}",
            soft_wrap=True,
        )
    missing = "not drawn: pip install 'robustbench-local[plot]'"
    screen.print(f"curves: {curves or missing}", soft_wrap=True, markup=False)
    screen.print(f"result: {folder / RESULT}", soft_wrap=True, markup=False)
    screen.print(f"checkpoint: {folder / WEIGHTS}", soft_wrap=True, markup=False)
