"""The report of an epoch, the observers that receive it, and the checks for overfitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from robustbench_local.results.schema import Accuracy, StrictModel

GAP, DECLINE, LESSER_GAP = 0.20, 0.8, 0.10
"""Catastrophic overfitting: the robust accuracy is GAP below FGSM's; or it is below DECLINE times its best while FGSM's
has risen, and LESSER_GAP below FGSM's (Wong, Rice and Kolter, ICLR 2020, stop where it falls)."""
OVERFITTED = 0.02
"""Robust overfitting: the last epoch's robust accuracy is so far below the best epoch's (Rice, Wong and Kolter, ICML
2020), and the hold-out is large enough to show it."""


class EpochReport(StrictModel):
    """One line of `metrics.jsonl`. Accuracies are those on the hold-out; losses are means over the epoch's images."""

    epoch: int = Field(ge=1)
    method: str = Field("", description="training method of the epoch")
    loss: Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)] = Field(
        description="null where every batch was skipped"
    )
    parts: dict[str, float]
    learning_rate: float
    clean_accuracy: Accuracy
    robust_accuracy: Accuracy | None = Field(description="under PGD-10; null where the method is validated otherwise")
    fgsm_accuracy: Accuracy | None = Field(None, description="under FGSM; measured with robust_accuracy")
    noisy_accuracy: Accuracy | None = Field(None, description="under the Gaussian noise that the method trains for")
    only_class: int | None = Field(None, description="the predicted class, where it is the same for every image")
    skipped: int = Field(0, description="batches that were skipped because their gradient was not finite")
    images_per_second: float
    seconds: float
    chosen: bool = Field(description="no epoch before this one was better")
    undone: bool = Field(default=False, description="the weights were set back to those before this epoch")
    warnings: list[str] = Field(default_factory=list)

    @property
    def rank(self) -> tuple[float, float]:
        """Orders epochs: by robust or noisy accuracy where it was measured, clean accuracy breaks ties."""
        first = self.robust_accuracy or self.noisy_accuracy
        return first.value if first else 0.0, self.clean_accuracy.value


class TrainingObserver:
    """Receives the progress of a training run and ignores it. A display overrides what it shows."""

    def begin(self, epochs: int, images: int, done: int = 0) -> None:
        """Training starts or resumes. images: in an epoch. done: epochs that an earlier session has finished."""

    def advance(self, images: int, loss: float) -> None:
        """A batch has been trained on."""

    def epoch(self, report: EpochReport) -> None:
        """An epoch has ended."""

    def warn(self, text: str) -> None:
        """A warning about the whole training run."""

    def note(self, text: str) -> None:
        """A choice that was made for the user, such as a default."""


def best(reports: Sequence[EpochReport]) -> EpochReport | None:
    """The epoch whose weights are kept; of equally good ones the latest."""
    candidates = [report for report in reports if report.chosen]
    return candidates[-1] if candidates else None


def is_catastrophic(report: EpochReport, earlier: Sequence[EpochReport]) -> bool:
    """Whether the network has overfitted to the single step that it is trained with and lost its robustness."""
    if report.robust_accuracy is None or report.fgsm_accuracy is None:
        return False
    robust, fgsm = report.robust_accuracy.value, report.fgsm_accuracy.value
    if fgsm - robust > GAP:
        return True
    peak = best(earlier)
    if peak is None or peak.robust_accuracy is None or peak.fgsm_accuracy is None:
        return False
    risen = fgsm >= peak.fgsm_accuracy.value and fgsm - robust > LESSER_GAP
    return risen and robust < DECLINE * peak.robust_accuracy.value


def overfitting(reports: Sequence[EpochReport]) -> str | None:
    """The warning about robust overfitting at the end of training; None where there is none."""
    peak, last = best(reports), reports[-1]
    if peak is None or peak.robust_accuracy is None or last.robust_accuracy is None:
        return None
    gap = peak.robust_accuracy.value - last.robust_accuracy.value
    if gap <= OVERFITTED or last.robust_accuracy.value >= peak.robust_accuracy.confidence.low:
        return None
    return (
        f"robust overfitting: the last epoch is {100 * gap:.1f} points less robust than epoch {peak.epoch}, whose "
        "weights are kept; fewer epochs, --average 0.999 or a method with +awp overfit less"
    )
