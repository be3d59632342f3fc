"""An average of the weights over training (EMA): flatter and more robust than any single step's (Rebuffi et al., "Data
augmentation can improve robustness", NeurIPS 2021).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

SETTLING = 50
"""Batches from which batch norm learns statistics anew: with its momentum of 0.1 old ones weigh 0.005 after them."""


class WeightEMA:
    """Exponentially averaged weights in a network of their own, whose batch norm has statistics of its own.

    decay: the share of the average that a step leaves; lower in the first steps, (1 + n) / (10 + n), so that random
    weights are forgotten. settle shows the averaged network a batch without learning from it, for batch norm.
    """

    def __init__(self, network: nn.Module, decay: float, updates: int = 0):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.updates = updates
        self._decay = decay
        self._norms = [
            part
            for part in self.network.modules()
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
        ]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)

    @torch.no_grad()
    def refresh_batch_norm(self, points: Tensor) -> None:
        if not self._norms:
            return
        for part in self._norms:
            part.train()
        self.network(points)
        for part in self._norms:
            part.eval()
