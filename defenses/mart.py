"""MART: Wang et al., "Improving adversarial robustness requires revisiting misclassified examples" (ICLR 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from robustbench_local.defenses.multi_step import MultiStep
from robustbench_local.defenses.objective import OBJECTIVES, Examples, Parts, TrainingContext, divergence


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class MART(MultiStep):
    """Boosted cross-entropy at the adversarial point, plus a divergence weighted by the clean image's error.

    beta: weight of the divergence. steps, step_size: of the inner attack on the cross-entropy; step_size is in pixel
    units, by default 2.5 · eps / steps.
    """

    name: ClassVar[str] = "mart"
    beta: float = 5.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ValueError(f"beta is {self.beta:g}, but must be at least 0")

    def training_defaults(self) -> dict[str, Any]:
        # The boosted cross-entropy and beta times the divergence add up to long gradients, from which SGD diverges.
        return {"clip_norm": 1.0}

    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        labels, logits = examples.labels, context.logits(examples.images)
        adversarial_logits = context.logits(examples.adversarial)
        highest_wrong = adversarial_logits.softmax(1).scatter(1, labels[:, None], 0).amax(1)
        # 1.0001 as in the authors' code: the loss stays finite for a wrong probability of 1.
        boosted_loss = context.cross_entropy(adversarial_logits, labels) - (1.0001 - highest_wrong).log().mean()
        error = 1 - logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
        drift = (divergence(adversarial_logits, logits.log_softmax(1)) * error).mean()
        return boosted_loss + self.beta * drift, {"boosted": boosted_loss.detach(), "divergence": drift.detach()}
