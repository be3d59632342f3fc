"""Fronts whose gradient is missing in some of the pixels only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from partial import sturdy
from tasks import Task
from torch import Tensor, nn

Front = Callable[[Tensor], Tensor]


class Fronted(nn.Module):
    """A function of the pixels before a network. straight: the same values with the gradient of the identity."""

    def __init__(self, front: Front, core: nn.Module):
        super().__init__()
        self.front, self.core = front, core

    def forward(self, images: Tensor) -> Tensor:
        return self.core(self.front(images))

    def straight(self, images: Tensor) -> Tensor:
        return self.core(images + (self.front(images) - images).detach())


# Flat at the border of the box, where many pixels of many images are.


def clamped(on: Task, low: float = 0.0) -> nn.Module:
    """Clamped to [low, 1 - low]; with low = 0, the identity on every legal image."""
    return Fronted(lambda images: images.clamp(low, 1 - low), sturdy(on.name))


def hard_tanh(on: Task) -> nn.Module:
    return Fronted(nn.Hardtanh(0, 1), sturdy(on.name))


def rectified(on: Task) -> nn.Module:
    """Rectified at both ends of the box: the identity on every legal image."""
    return Fronted(lambda images: 1 - (1 - images.relu()).relu(), sturdy(on.name))


# Of a part of the image.


def checkered(on: Task) -> nn.Module:
    """Every other pixel comes without its gradient, as on the squares of one color of a chessboard."""
    side = torch.arange(on.size)
    taken = (side[:, None] + side) % 2 == 0
    return Fronted(lambda images: torch.where(taken, images, images.detach()), sturdy(on.name))


def rounded_half(on: Task) -> nn.Module:
    """The left half is rounded to 32 gray levels."""
    left = torch.arange(on.size) < on.size // 2
    return Fronted(lambda images: torch.where(left, (31 * images).round() / 31, images), sturdy(on.name))
