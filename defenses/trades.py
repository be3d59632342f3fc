"""TRADES: Zhang et al., "Theoretically principled trade-off between robustness and accuracy" (ICML 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_local.defenses.multi_step import KLGuided
from robustbench_local.defenses.objective import OBJECTIVES, Examples, Parts, TrainingContext, divergence


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class TRADES(KLGuided):
    """Cross-entropy on clean images plus beta times the divergence KL(f(x) || f(x')) at adversarial points x'.

    beta: weight of the divergence. steps, step_size: of the inner attack on that divergence;
    step_size is in pixel units, by default 2.5 · eps / steps.
    """

    name: ClassVar[str] = "trades"
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ValueError(f"beta is {self.beta:g}, but must be at least 0")

    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        logits, adversarial_logits = context.logits(examples.images), context.logits(examples.adversarial)
        clean = context.cross_entropy(logits, examples.labels)
        drift = divergence(adversarial_logits, logits.log_softmax(1)).mean()
        return clean + self.beta * drift, {"clean": clean.detach(), "divergence": drift.detach()}
