"""Distillation: learning from a teacher's probabilities (Papernot et al., S&P 2016; Zi et al., ICCV 2021).

Defensive distillation: Papernot et al., "Distillation as a defense to adversarial perturbations against deep neural
networks" (S&P 2016). Broken by Carlini and Wagner, "Towards evaluating the robustness of neural networks" (S&P 2017):
it masks gradients without moving the decision boundary. It is included as a broken control, not as a defense to use.
RSLAD: Zi et al., "Revisiting adversarial robustness distillation: robust soft labels make student better" (ICCV 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from robustbench_local.defenses.multi_step import KLGuided
from robustbench_local.defenses.objective import OBJECTIVES, Examples, Objective, Parts, TrainingContext, divergence
from robustbench_local.defenses.standard import Standard


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class DefensiveDistillation(Objective):
    """A broken defense, for comparison: its gradients vanish, but attacks that account for this succeed.

    Student and teacher are trained at the same temperature and used without it, so the logits are larger by that
    factor. The loss is multiplied by the temperature, which keeps the size of its gradient with respect to the logits.
    Without a teacher, one is trained first, with cross-entropy at the temperature.
    """

    name: ClassVar[str] = "defensive-distillation"
    validation_metric: ClassVar[Literal["clean", "robust", "noisy"]] = "clean"
    needs_teacher: ClassVar[bool] = True
    temperature: float = 20.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature:g}, but must be above 0")

    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        soft_labels = (context.teacher_logits(examples.images) / self.temperature).softmax(1)
        loss = self.temperature * F.cross_entropy(context.logits(examples.images) / self.temperature, soft_labels)
        return loss, {"distillation": loss.detach()}

    def own_teacher(self) -> Objective | None:
        return Standard(temperature=self.temperature)

    def training_defaults(self) -> dict[str, Any]:
        return Standard(temperature=self.temperature).training_defaults()


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class RSLAD(KLGuided):
    """Use a robust teacher's probabilities for clean images as labels of these and of adversarial images.

    clean: weight of the clean images' loss, from 0 to 1. steps, step_size: of the inner attack, which maximizes the
    divergence from the teacher's probabilities; step_size is in pixel units, by default 2.5 · eps / steps.
    """

    name: ClassVar[str] = "rslad"
    needs_teacher: ClassVar[bool] = True
    clean: float = 1 / 6
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.clean <= 1:
            raise ValueError(f"clean is {self.clean:g}, but must be from 0 to 1")

    def _reference(self, context: TrainingContext, images: Tensor) -> Tensor:
        return context.teacher_logits(images)

    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        assert examples.reference_logits is not None, "set by `examples` of the same method"
        soft_labels = examples.reference_logits.log_softmax(1)
        clean = divergence(context.logits(examples.images), soft_labels).mean()
        robust = divergence(context.logits(examples.adversarial), soft_labels).mean()
        parts = {"clean": clean.detach(), "adversarial": robust.detach()}
        return self.clean * clean + (1 - self.clean) * robust, parts
