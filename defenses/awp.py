"""AWP: Wu, Xia and Wang, "Adversarial weight perturbation helps robust generalization" (NeurIPS 2020)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AWP:
    """The loss is differentiated at weights that were moved one step uphill, which flattens the loss around them.

    It goes with any method: `trades+awp`. gamma: a layer's step in multiples of its own norm; 0.01 with pgd-at, 0.005
    with trades. warmup: the first epochs, which do without.
    """

    name: ClassVar[str] = "awp"
    gamma: float = 0.005
    warmup: int = 0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma:g}, but must be above 0")
        if self.warmup < 0:
            raise ValueError(f"warmup is {self.warmup}, but must be at least 0 epochs")

    @contextlib.contextmanager
    def moved(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Iterator[None]:
        """Inside, weights with more than one dimension stand one step uphill, each gamma of its norm away."""
        with torch.no_grad():
            steps = [
                (weight, self._step(weight, gradient))
                for weight, gradient in zip(weights, gradients, strict=True)
                if weight.dim() > 1
            ]
            before = [weight.detach().clone() for weight, _ in steps]
            for weight, step in steps:
                weight.add_(step)
        try:
            yield
        finally:
            # Put back, not subtracted: rounding would drift.
            with torch.no_grad():
                for (weight, _), old in zip(steps, before, strict=True):
                    weight.copy_(old)

    def _step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        # Entries that are no finite numbers count as 0: in train mode one pass through damaged weights would stay in
        # batch norm's running statistics for good.
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return gradient * (self.gamma * weight.norm() / gradient.norm().clamp_min(1e-20))
