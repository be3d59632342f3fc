"""What is said of an epoch: to the file of metrics, to whoever watches, and to the watchers that step in."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BeforeValidator, Field

from robustbench_local.results.schema import Accuracy, StrictModel

GAP, FALLEN, LESSER_GAP = 0.20, 0.8, 0.10
"""Catastrophic overfitting shows in a robust accuracy so far below FGSM's; or below this share of its best while FGSM's
has risen, and still so far below (Wong, Rice and Kolter, ICLR 2020, stop where it falls)."""
OVERFITTED = 0.02
"""A last epoch so far below the best one in robust accuracy has overfitted (Rice, Wong and Kolter, ICML 2020), where
the hold-out is large enough to tell."""


class EpochReport(StrictModel):
    """One line of `metrics.jsonl`. Accuracies are those on the hold-out; losses are means over the epoch's images."""

    epoch: int = Field(ge=1)
    method: str = Field("", description="what the epoch was trained by")
    loss: Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)] = Field(
        description="null where every batch was skipped"
    )
    parts: dict[str, float]
    learning_rate: float
    clean_accuracy: Accuracy
    robust_accuracy: Accuracy | None = Field(description="under PGD-10; null where the method is not judged by it")
    fgsm_accuracy: Accuracy | None = Field(None, description="under FGSM, where robust_accuracy is measured")
    noisy_accuracy: Accuracy | None = Field(None, description="under the noise that the method trains for")
    skipped: int = Field(0, description="batches whose gradient was not a finite number and changed nothing")
    images_per_second: float
    seconds: float
    chosen: bool = Field(description="no epoch before this one was better")
    undone: bool = Field(default=False, description="the weights were put back to those before this epoch")
    warnings: list[str] = Field(default_factory=list)

    @property
    def rank(self) -> tuple[float, float]:
        """Orders epochs: by robust or noisy accuracy where it was measured, clean accuracy breaks ties."""
        first = self.robust_accuracy or self.noisy_accuracy
        return first.value if first else 0.0, self.clean_accuracy.value


class TrainingObserver:
    """Hears how training goes; does nothing with it. A display overrides what it shows."""

    def begin(self, epochs: int, images: int, done: int = 0) -> None:
        """Training begins: so many epochs of so many images, the first of them done by an earlier session."""

    def advance(self, images: int, loss: float) -> None:
        """A batch of so many images has been learnt from."""

    def epoch(self, report: EpochReport) -> None:
        """An epoch has ended."""

    def warn(self, text: str) -> None:
        """Something about the whole training that people should know."""


def best(reports: list[EpochReport]) -> EpochReport | None:
    """The epoch whose weights are kept. Of equals the later: its learning rate is lower, its weights have seen more."""
    chosen = [report for report in reports if report.chosen]
    return chosen[-1] if chosen else None


def is_catastrophic(report: EpochReport, earlier: list[EpochReport]) -> bool:
    """Whether the network has learnt to fool the single step it is trained with instead of standing up to attacks."""
    if report.robust_accuracy is None or report.fgsm_accuracy is None:
        return False
    robust, fgsm = report.robust_accuracy.value, report.fgsm_accuracy.value
    if fgsm - robust > GAP:
        return True
    height = best(earlier)
    if height is None or height.robust_accuracy is None or height.fgsm_accuracy is None:
        return False
    risen = fgsm >= height.fgsm_accuracy.value and fgsm - robust > LESSER_GAP
    return risen and robust < FALLEN * height.robust_accuracy.value


def overfitting(reports: list[EpochReport]) -> str | None:
    """What is to be said of robust overfitting at the end."""
    height, last = best(reports), reports[-1]
    if height is None or height.robust_accuracy is None or last.robust_accuracy is None:
        return None
    gap = height.robust_accuracy.value - last.robust_accuracy.value
    if gap <= OVERFITTED or last.robust_accuracy.value >= height.robust_accuracy.confidence.low:
        return None
    return (
        f"robust overfitting: the last epoch is {100 * gap:.1f} points less robust than epoch {height.epoch}, which is "
        "kept; fewer epochs, --average 0.999 or a method with +awp overfit less"
    )
