"""PGD-AT: Madry et al., "Towards deep learning models resistant to adversarial attacks" (ICLR 2018)."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from robustbench_local.attacks.pgd import PGD
from robustbench_local.defenses.objective import Examples, Learner, Objective, Parts, last_points, require_moving

FEW_STEPS = 3
"""Attacks of so few steps can still be overfitted to (Wong, Rice and Kolter, ICLR 2020)."""


@dataclass(frozen=True, kw_only=True)
class PGDAT(Objective):
    """Cross-entropy at the point where PGD ends: the minimum over weights of the maximum over the ball.

    steps: gradients of the inner attack. step_size: in pixel units; by default 2.5 · eps / steps. random_start: begin
    at a uniform point of the ball instead of the image.
    """

    name: ClassVar[str] = "pgd-at"
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        self._attack()  # refuses what PGD refuses
        require_moving(self.step_size)

    def _attack(self) -> PGD:
        return PGD(steps=self.steps, step_size=self.step_size, random_start=self.random_start)

    def examples(self, learner: Learner, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:
        return Examples(images, labels, keys, last_points(self._attack(), learner, images, labels, keys))

    def loss(self, learner: Learner, examples: Examples) -> tuple[Tensor, Parts]:
        loss = learner.cross_entropy(learner.logits(examples.points), examples.labels)
        return loss, {"adversarial": loss.detach()}

    def safer(self) -> Objective | None:
        return replace(self, steps=10, step_size=None) if self.steps <= FEW_STEPS else None
