"""Single-step adversarial training (Wong, Rice and Kolter, ICLR 2020): fast, prone to catastrophic overfitting.

FGSM-RS: Wong, Rice and Kolter, "Fast is better than free: revisiting adversarial training" (ICLR 2020).
N-FGSM: de Jorge et al., "Make some noise: reliable and efficient single-step adversarial training" (NeurIPS 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_local.attacks.pgd import PGD, projected_step
from robustbench_local.defenses.objective import (
    OBJECTIVES,
    AdversarialCrossEntropy,
    Examples,
    Objective,
    TrainingContext,
    inner_attack,
)
from robustbench_local.defenses.pgd_at import PGDAT


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class FGSMRS(AdversarialCrossEntropy):
    """Cross-entropy after one gradient step from a uniform point of the ball, projected into the ball.

    step: step size as a multiple of eps.
    """

    name: ClassVar[str] = "fgsm-rs"
    step: float = 1.25

    def __post_init__(self) -> None:
        _require_above_0(self.step, "step")

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:
        attack = PGD(steps=1, step_size=self.step * context.threat_model.eps)
        return Examples(images, labels, keys, inner_attack(attack, context, images, labels, keys))

    def fallback(self) -> Objective | None:
        return NFGSM()


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class NFGSM(AdversarialCrossEntropy):
    """Cross-entropy after one gradient step from strong noise, without projection: points may be outside the ball.

    noise: radius of the uniform noise as a multiple of eps. step: step size as a multiple of eps.
    """

    name: ClassVar[str] = "n-fgsm"
    noise: float = 2.0
    step: float = 1.0

    def __post_init__(self) -> None:
        _require_above_0(self.noise, "noise")
        _require_above_0(self.step, "step")

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:
        threat_model = context.threat_model
        noise = threat_model.geometry.random_start(images, self.noise * threat_model.eps, keys)
        noisy = (images + noise).clamp(*threat_model.box)
        # The ball around the noisy image contains the whole step, so only the box limits it.
        attack = PGD(steps=1, step_size=self.step * threat_model.eps, random_start=False)
        wide = threat_model.scaled(max(self.step, 1.0))
        inner_context = TrainingContext(context.model, wide, context.frozen_model)
        return Examples(images, labels, keys, inner_attack(attack, inner_context, noisy, labels, keys))

    def fallback(self) -> Objective | None:
        return PGDAT(steps=2)


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class FreeAT(AdversarialCrossEntropy):
    """Train on every batch several times; each backward pass updates both the weights and the points.

    Shafahi et al., "Adversarial training for free!" (NeurIPS 2019). replays: steps per batch. The points of every batch
    start at random in the ball; in the paper they start from the perturbation of the previous batch.
    """

    name: ClassVar[str] = "free"
    replays: int = 8

    def __post_init__(self) -> None:
        if self.replays < 2:
            raise ValueError(f"replays is {self.replays}, but must be at least 2")

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:
        threat_model = context.threat_model
        start = images + threat_model.geometry.random_start(images, threat_model.eps, keys)
        return Examples(images, labels, keys, threat_model.project(start, images).requires_grad_(True))

    def next_replay(self, context: TrainingContext, examples: Examples) -> Examples | None:
        if examples.replay + 1 >= self.replays:
            return None
        threat_model, points = context.threat_model, examples.adversarial.detach()
        assert examples.adversarial.grad is not None, "set by the backward pass of the loss"
        gradient = examples.adversarial.grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        lengths = torch.full((len(points),), threat_model.eps, device=points.device)
        points = projected_step(points, gradient, lengths, examples.images, threat_model).requires_grad_(True)
        return Examples(examples.images, examples.labels, examples.keys, points, examples.replay + 1)

    def fallback(self) -> Objective | None:
        return NFGSM()


def _require_above_0(value: float, name: str) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value:g}, but must be above 0")
