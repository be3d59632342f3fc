"""FGSM: Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples" (ICLR 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_local.attacks.attack import Model, Rows, State, run
from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.threat_model import ThreatModel


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """One step of length eps from the image itself, along the steepest direction of the norm.

    loss: a name in `losses.LOSSES`.
    """

    name: ClassVar[str] = "fgsm"
    steps: ClassVar[int] = 1
    restarts: ClassVar[int] = 1
    targets: ClassVar[int] = 0
    loss: str = "ce"

    def __post_init__(self) -> None:
        PGD(loss=self.loss)  # the same losses are allowed

    def _single_step(self, threat_model: ThreatModel) -> PGD:
        return PGD(steps=1, step_size=threat_model.eps, loss=self.loss, random_start=False)

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:
        return self._single_step(threat_model).start(threat_model, rows)

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        return self._single_step(threat_model).step(model, threat_model, state)


def fgsm(classifier: Model, images: Tensor, labels: Tensor, threat_model: ThreatModel, *, loss: str = "ce") -> Tensor:
    """Adversarial images by one gradient step: of each image and its step, the one nearer to success.

    classifier: float [N, ...] in the box -> logits [N, classes], in eval mode. images: float [N, ...] in the box.
    labels: int64 [N]. Returns float [N, ...] in ball and box. Raises ValueError for an unknown loss.
    """
    return run(FGSM(loss=loss), classifier, threat_model, images, labels)
