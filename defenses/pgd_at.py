"""PGD-AT: Madry et al., "Towards deep learning models resistant to adversarial attacks" (ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from robustbench_local.attacks.pgd import PGD
from robustbench_local.defenses.multi_step import MultiStep
from robustbench_local.defenses.objective import OBJECTIVES, Objective

FEW_STEPS = 3
"""Up to this number of steps, catastrophic overfitting occurs (Wong, Rice and Kolter, ICLR 2020)."""


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class PGDAT(MultiStep):
    """Cross-entropy at the last iterate of PGD: the minimum over weights of the maximum over the ball.

    steps: gradients of the inner attack. step_size: in pixel units; by default 2.5 · eps / steps. random_start: start
    at a uniform point of the ball instead of the image.
    """

    name: ClassVar[str] = "pgd-at"
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True

    def _attack(self) -> PGD:
        return PGD(steps=self.steps, step_size=self.step_size, random_start=self.random_start)

    def fallback(self) -> Objective | None:
        return replace(self, steps=10, step_size=None) if self.steps <= FEW_STEPS else None
