"""HAT: Rade and Moosavi-Dezfooli, "Reducing excessive margin to achieve a better accuracy vs. robustness trade-off"
(ICLR 2022).
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
    """TRADES with helper examples: points further out are taught to be what an ordinary network takes them for.

    That keeps the margin from growing beyond what robustness needs, which costs clean accuracy. The teacher is an
    ordinary network; without one it is trained first. beta: what a moved prediction costs. gamma: what a helper costs.
    reach: how far out helpers lie, in multiples of the perturbation. steps, step_size: of the inner attack; step_size
    is in pixel units, by default 2.5 · eps / steps.
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
        helped = context.cross_entropy(context.logits(helpers), context.teacher_logits(points).argmax(1))
        parts = {"clean": clean.detach(), "divergence": drift.detach(), "helpers": helped.detach()}
        return clean + self.beta * drift + self.gamma * helped, parts

    def own_teacher(self) -> Objective | None:
        return Standard()
