"""PGD-AT: Madry et al., "Towards deep learning models resistant to adversarial attacks" (ICLR 2018)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_local.attacks.pgd import PGD
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.defenses.objective import last_points


@dataclass(frozen=True, kw_only=True)
class PGDAT:
    """Cross-entropy at the point where PGD ends: the minimum over weights of the maximum over the ball.

    steps: gradients of the inner attack. step_size: in pixel units; by default 2.5 · eps / steps. random_start: begin
    at a uniform point of the ball instead of the image.
    """

    name: ClassVar[str] = "pgd-at"
    judged_by: ClassVar[Literal["clean", "robust"]] = "robust"
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        self._attack()  # refuses what PGD refuses
        if self.step_size == 0:
            raise ValueError("step_size is 0, which would train on noise: leave it out for 2.5 · eps / steps")

    def _attack(self) -> PGD:
        return PGD(steps=self.steps, step_size=self.step_size, random_start=self.random_start)

    def loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat_model: ThreatModel, keys: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        points = last_points(self._attack(), model, threat_model, images, labels, keys)
        loss = F.cross_entropy(model(points), labels)
        return loss, {"adversarial": loss.detach()}
