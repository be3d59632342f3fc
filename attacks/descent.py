"""Down instead of up: Chen et al., "Adversarial attack on attackers: post-process to mitigate black-box score-based
query attacks" (NeurIPS 2022) show how logits can be bent, with no class changed, until their loss leads astray.
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
    """PGD that descends its loss: on an honest model it makes images safer, on one whose loss is turned round it wins.

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
