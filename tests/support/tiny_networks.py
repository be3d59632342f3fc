"""Small networks, and whether two of them compute the same."""

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


IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def same_function(one: nn.Module, other: nn.Module) -> bool:
    """Equal outputs for several batch sizes, and equal gradients, on `IMAGES`."""
    for count in (1, 2, 5):
        if not torch.allclose(one(IMAGES[:count]), other(IMAGES[:count]), atol=1e-5):
            return False
    gradients = []
    for function in (one, other):
        images = IMAGES.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(images)[:, 0].sum(), images)[0])
    return torch.allclose(*gradients, atol=1e-5)
