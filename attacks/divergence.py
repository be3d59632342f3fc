"""The inner attack of TRADES, the paper by Zhang et al. (ICML 2019).

"Theoretically principled trade-off between robustness and accuracy".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from robustbench_local.attacks import randomness
from robustbench_local.attacks.attack import Model, Rows, State, ValueAndGrad, initial_state, value_and_grad_of
from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.threat_model import ThreatModel

START_NOISE = 0.001
"""Standard deviation of the start around the image, in pixel units: at the image the divergence has gradient 0."""


@dataclass(frozen=True, kw_only=True)
class DivergencePGD(PGD):
    """PGD that maximizes KL(reference || prediction): it changes the predictions, whatever the labels are.

    The caller adds `reference` to the state after `start`: probabilities, float [rows, classes]. Loss and start are
    fixed, so the settings loss, random_start and targets are refused.
    """

    name: ClassVar[str] = "divergence-pgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss != "ce" or not self.random_start or self.targets:
            raise ValueError(f"{self.name} has a fixed loss and start: leave out loss, random_start and targets")

    def start(self, threat_model: ThreatModel, rows: Rows) -> State:
        noise = START_NOISE * randomness.normal(rows.keys, rows.images.shape[1:])
        points = threat_model.project(rows.images + noise, rows.images)
        state = initial_state(rows, points)
        return {**state, "before": points} if self.momentum else state

    def _evaluate(self, model: Model, threat_model: ThreatModel, state: State) -> ValueAndGrad:
        def climb(logits: Tensor) -> Tensor:
            return F.kl_div(logits.log_softmax(1), state["reference"], reduction="none").sum(1)

        return value_and_grad_of(model, threat_model, climb, state)
