"""Descent on the loss, against the defense of Chen et al., "Adversarial attack on attackers" (NeurIPS 2022).

That defense changes logits, but no predicted class, so that the loss misleads score-based attacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_local.attacks.attack import ATTACKS, Model, State, ValueAndGrad, value_and_grad_of
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.threat_model import ThreatModel


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class Descent(PGD):
    """PGD that minimizes its loss: it succeeds only on models whose loss falls towards adversarial examples.

    The settings are PGD's.
    """

    name: ClassVar[str] = "descent"
    steps: int = 50
    loss: str = "margin"
    schedule: str = "cosine"
    momentum: float = 0.25

    def _evaluate(self, model: Model, threat_model: ThreatModel, state: State) -> ValueAndGrad:
        aims = state["targets"] if self.targets else None

        def climb(logits: Tensor) -> Tensor:
            return -threat_model.attack_loss(self.loss, logits, state["labels"], aims)

        return value_and_grad_of(model, threat_model, climb, state)


descent = attack_function(Descent)
