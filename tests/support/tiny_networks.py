"""Small networks for the tests of this folder."""

from __future__ import annotations

import torch
from torch import nn


def tiny(num_classes: int = 3, seed: int = 1) -> nn.Module:
    """Convolution, batch norm with statistics of its own, dropout: a forward that differs between train and eval."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, num_classes)
        )
        module[1].running_mean.uniform_(-0.5, 0.5)
        module[1].running_var.uniform_(0.5, 2)
    return module
