"""FGSM: Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples" (ICLR 2015)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from robustbench_local.attacks.attack import ATTACKS, Model, Rows, State
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.threat_model import ThreatModel


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class FGSM:
    """One step of length eps from the image, along the norm's steepest direction.

    loss: a name in `losses.LOSSES`. inset: as for `PGD`.
    """

    name: ClassVar[str] = "fgsm"
    steps: ClassVar[int] = 1
    restarts: ClassVar[int] = 1
    targets: ClassVar[int] = 0
    loss: str = "ce"
    inset: float = field(default=0.0, metadata={"since": 2})

    def __post_init__(self) -> None:
        PGD(loss=self.loss, inset=self.inset)  # raises for an unknown loss or an inset out of range

    def _single_step(self, threat_model: ThreatModel) -> PGD:
        return PGD(steps=1, step_size=threat_model.eps, loss=self.loss, random_start=False, inset=self.inset)

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:
        return self._single_step(threat_model).start(threat_model, rows)

    def step(self, model: Model, threat_model: ThreatModel, state: State) -> State:
        return self._single_step(threat_model).step(model, threat_model, state)


fgsm = attack_function(FGSM)
