"""Networks and batches that the tests of training methods share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustbench_local.attacks.randomness import sample_keys

Batch = tuple[Tensor, Tensor, Tensor]


class Network(nn.Module):
    """Batch norm, a hidden layer and dropout for images of any rank; it counts what its passes cost.

    forwards, backwards: images that went through. seen: in which mode, and with trainable weights or without.
    """

    def __init__(self, features: int, classes: int, dropout: float):
        super().__init__()
        self.norm, self.first, self.last = nn.BatchNorm1d(features), nn.Linear(features, 16), nn.Linear(16, classes)
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.tensor(3.0), requires_grad=False)
        self.forwards = self.backwards = 0
        self.seen: set[tuple[bool, bool]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        self.seen.add((self.training, self.first.weight.requires_grad))
        hidden = nn.functional.silu(self.first(self.norm(images.flatten(1))))
        logits = self.scale * self.last(self.dropout(hidden))
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@pytest.fixture
def network() -> Callable[..., Network]:
    """Makes a network in train mode, whose running statistics are not those it began with."""

    def make(shape: tuple[int, ...] = (3, 4, 4), classes: int = 5, *, dropout: float = 0.0, seed: int = 1) -> Network:
        torch.manual_seed(seed)
        made = Network(torch.Size(shape).numel(), classes, dropout)
        made(torch.rand(64, *shape))
        made.forwards, made.seen = 0, set()
        return made

    return make


@pytest.fixture
def batch() -> Callable[..., Batch]:
    """Makes images with pixels at both ends of the box, labels, and keys."""

    def make(shape: tuple[int, ...] = (3, 4, 4), rows: int = 9, classes: int = 5) -> Batch:
        generator = torch.Generator().manual_seed(2)
        images = (1.2 * torch.rand(rows, *shape, generator=generator) - 0.1).clamp(0, 1)
        return images, torch.arange(rows) % classes, sample_keys(0, torch.arange(rows), "train/1", 0)

    return make


@pytest.fixture
def linear() -> nn.Module:
    """Two classes: whatever an attack climbs rises with the sign of w1 - w0 or against it, wherever one stands."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))


@pytest.fixture
def inner() -> Batch:
    """Images of that linear model, far from the edges of the box, with labels and keys."""
    generator = torch.Generator().manual_seed(2)
    images = 0.2 + 0.6 * torch.rand(9, 3, 2, 2, generator=generator)
    return images, torch.arange(9) % 2, sample_keys(0, torch.arange(9), "train/1", 0)
