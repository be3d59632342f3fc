"""Exponential moving average (EMA) of the weights.

It is flatter and more robust than the weights of any step: Rebuffi et al., "Data augmentation can improve robustness"
(NeurIPS 2021).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

SETTLING = 50
"""Batches that update batch norm statistics at the end of an epoch: at momentum 0.1, older ones then weigh 0.005."""


class WeightEMA:
    """An exponential moving average of the weights, in a network with batch norm statistics of its own.

    decay: the share of the average that an update keeps; at most (1 + n) / (10 + n) in update n, so that the initial
    random weights are forgotten.
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
        """Move the average towards the network's weights."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)

    @torch.no_grad()
    def refresh_batch_norm(self, images: Tensor) -> None:
        """Update the averaged network's batch norm statistics with a batch, float [rows, channels, height, width]."""
        if not self._norms:
            return
        for part in self._norms:
            part.train()
        self.network(images)
        for part in self._norms:
            part.eval()
