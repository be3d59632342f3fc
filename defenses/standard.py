"""Standard training: cross-entropy on clean images. The baseline for every defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from robustbench_local.defenses.objective import OBJECTIVES, Examples, Objective, Parts, TrainingContext


@OBJECTIVES.register
@dataclass(frozen=True, kw_only=True)
class Standard(Objective):
    """Cross-entropy on clean images, independent of the threat model.

    temperature: divides the logits during training. It also multiplies the loss, which keeps the size of its gradient
    with respect to the logits. With a temperature above 1 the trained network has larger logits by that factor;
    teachers of defensive distillation are trained like this.
    """

    name: ClassVar[str] = "standard"
    validation_metric: ClassVar[Literal["clean", "robust", "noisy"]] = "clean"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature:g}, but must be above 0")

    def training_defaults(self) -> dict[str, Any]:
        # Logits grow to `temperature` times their usual size, and the gradients of the weights with them: without a
        # limit SGD diverges at the learning rates that suit temperature 1.
        return {"clip_norm": 1.0} if self.temperature > 1 else {}

    def loss(self, context: TrainingContext, examples: Examples) -> tuple[Tensor, Parts]:
        logits = context.logits(examples.images) / self.temperature
        loss = self.temperature * context.cross_entropy(logits, examples.labels)
        return loss, {"clean": loss.detach()}
