"""The common part of methods whose inner attack is multi-step PGD."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_local.attacks.divergence import DivergencePGD
from robustbench_local.attacks.pgd import PGD
from robustbench_local.defenses.objective import AdversarialCrossEntropy, Examples, TrainingContext, inner_attack


class MultiStep(AdversarialCrossEntropy):
    """Trains on the last iterate of PGD on the labels' cross-entropy.

    steps: gradients of the inner attack. step_size: in pixel units; by default 2.5 · eps / steps. Each method declares
    both fields after its own: recipes and checkpoints store settings in the order of the fields. Raises ValueError for
    settings that PGD refuses, and for a step size of 0.
    """

    steps: int
    step_size: float | None

    def __post_init__(self) -> None:
        self._attack()  # raises for settings that PGD refuses
        if self.step_size == 0:
            raise ValueError("step_size is 0, but must be above 0: leave it out for 2.5 · eps / steps")

    def _attack(self) -> PGD:
        return PGD(steps=self.steps, step_size=self.step_size)

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:
        return Examples(images, labels, keys, inner_attack(self._attack(), context, images, labels, keys))


class KLGuided(MultiStep):
    """Trains on the last iterate of PGD on the divergence from a reference prediction, whatever the labels are."""

    def _attack(self) -> DivergencePGD:
        return DivergencePGD(steps=self.steps, step_size=self.step_size)

    def _reference(self, context: TrainingContext, images: Tensor) -> Tensor:
        """The logits of the reference prediction, float [rows, classes]: by default the frozen network's."""
        with torch.no_grad(), context.frozen_model() as model:
            return model(images)

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:
        reference = self._reference(context, images)
        points = inner_attack(self._attack(), context, images, labels, keys, reference=reference.softmax(1))
        return Examples(images, labels, keys, points, reference_logits=reference)
