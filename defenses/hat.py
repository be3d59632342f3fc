"""HAT, the paper by Rade and Moosavi-Dezfooli (ICLR 2022).

"Reducing excessive margin to achieve a better accuracy vs. robustness trade-off".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_local.defenses.multi_step import KLGuided
from robustbench_local.defenses.objective import OBJECTIVES, Examples, Objective, Parts, TrainingContext, divergence
from robustbench_local.defenses.standard import Standard


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class HAT(KLGuided):
    """TRADES with helper examples: more distant points labeled by a network without adversarial training.

    Helpers limit the margin to what robustness needs; a larger one costs clean accuracy. The teacher is a network from
    standard training; without one it is trained first. beta: weight of the divergence. gamma: weight of the helpers'
    loss. reach: distance of the helpers, as a multiple of the perturbation. steps, step_size: of the inner attack;
    step_size is in pixel units, by default 2.5 · eps / steps.
    """

    name: ClassVar[str] = "hat"
    needs_teacher: ClassVar[bool] = True
    beta: float = 2.5
    gamma: float = 0.5
    reach: float = 2.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "gamma", "reach"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name):g}, but must be at least 0")

    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        images, points = examples.images, examples.adversarial
        helpers = (images + self.reach * (points - images)).clamp(*context.threat_model.box)
        logits = context.logits(images)
        clean = context.cross_entropy(logits, examples.labels)
        drift = divergence(context.logits(points), logits.log_softmax(1)).mean()
        helper_loss = context.cross_entropy(context.logits(helpers), context.teacher_logits(points).argmax(1))
        parts = {"clean": clean.detach(), "divergence": drift.detach(), "helpers": helper_loss.detach()}
        return clean + self.beta * drift + self.gamma * helper_loss, parts

    def own_teacher(self) -> Objective | None:
        return Standard()
