"""AWP: Wu, Xia and Wang, "Adversarial weight perturbation helps robust generalization" (NeurIPS 2020)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_local.defenses.add_on import ADD_ONS, AddOn


@ADD_ONS.register
@dataclass(frozen=True, kw_only=True)
class AWP(AddOn):
    """Differentiate the loss at weights moved one step along its gradient, which flattens the loss around them.

    It works with any method, as in `trades+awp`. gamma: a layer's step as a multiple of the norm of its weights, 0.01
    with pgd-at and 0.005 with trades. warmup: number of first epochs without AWP.
    """

    name: ClassVar[str] = "awp"
    gamma: float = 0.005
    warmup: int = 0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma:g}, but must be above 0")
        if self.warmup < 0:
            raise ValueError(f"warmup is {self.warmup}, but must be at least 0 epochs")

    def active(self, epoch: int) -> bool:
        return epoch > self.warmup

    @contextlib.contextmanager
    def perturb(self, weights: Sequence[Tensor], gradients: Callable[[], Sequence[Tensor]]) -> Iterator[None]:
        """Inside, weights with more than one dimension are moved along their gradient, by gamma times their norm."""
        directions = gradients()
        with torch.no_grad():
            steps = [
                (weight, self._step(weight, gradient))
                for weight, gradient in zip(weights, directions, strict=True)
                if weight.dim() > 1
            ]
            before = [weight.detach().clone() for weight, _ in steps]
            for weight, step in steps:
                weight.add_(step)
        try:
            yield
        finally:
            # Copied back, not subtracted: rounding errors would add up.
            with torch.no_grad():
                for (weight, _), old in zip(steps, before, strict=True):
                    weight.copy_(old)

    def _step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        # Entries that are not finite count as 0: in train mode one pass through such weights would leave batch norm's
        # running statistics damaged for good.
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        length: Tensor = self.gamma * weight.norm() / gradient.norm().clamp_min(1e-20)
        return gradient * length
