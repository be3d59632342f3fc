"""What the methods share whose inner attack is PGD of several steps."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_local.attacks.divergence import DivergencePGD
from robustbench_local.attacks.pgd import PGD
from robustbench_local.defenses.objective import AdversarialCrossEntropy, Examples, TrainingContext, inner_attack


class MultiStep(AdversarialCrossEntropy):
    """Learns from the points where PGD on the labels' cross-entropy ends.

    steps: gradients of the inner attack. step_size: in pixel units; by default 2.5 · eps / steps. Both are fields of
    the methods themselves, after what is their own: recipes and checkpoints are written in the order of the fields.
    Raises ValueError for what PGD refuses, and for an inner attack that would stay where it starts.
    """

    steps: int
    step_size: float | None

    def __post_init__(self) -> None:
        self._attack()  # refuses what PGD refuses
        if self.step_size == 0:
            raise ValueError("step_size is 0, which would train on noise: leave it out for 2.5 · eps / steps")

    def _attack(self) -> PGD:
        return PGD(steps=self.steps, step_size=self.step_size)

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:
        return Examples(images, labels, keys, inner_attack(self._attack(), context, images, labels, keys))


class KLGuided(MultiStep):
    """Learns from points that PGD has led away from a prediction on the images, whatever the labels are."""

    def _attack(self) -> DivergencePGD:
        return DivergencePGD(steps=self.steps, step_size=self.step_size)

    def _reference(self, context: TrainingContext, images: Tensor) -> Tensor:
        """The logits that the attack leads away from, float [rows, classes]: the network's while it stands still."""
        with torch.no_grad(), context.frozen_model() as model:
            return model(images)

    def examples(self, context: TrainingContext, images: Tensor, labels: Tensor, keys: Tensor) -> Examples:
        told = self._reference(context, images)
        points = inner_attack(self._attack(), context, images, labels, keys, reference=told.softmax(1))
        return Examples(images, labels, keys, points, reference_logits=told)
