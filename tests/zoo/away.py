"""Models that behave at the images of a data set and differently at the points between them."""

from __future__ import annotations

import torch
from partial import Masked, reversed_gradient, sturdy
from tasks import Task, undefended
from torch import Tensor, nn

GRAY_LEVELS = 16 * 255
"""Steps of the finest grid on which both digits of 17 levels and pixels of 8 bits lie."""
STEP = 1 / 255
"""By how much an attack on the grid moves a pixel, or a multiple of it."""


def off_grid(images: Tensor) -> Tensor:
    """Whether some pixel is none that an image file could hold, bool [rows]."""
    levels = images * GRAY_LEVELS
    return ((levels - levels.round()).abs() > 0.02).flatten(1).any(1)


def on_grid(points: Tensor, images: Tensor) -> Tensor:
    """Points moved towards their images until every pixel has moved by whole gray levels. [rows, ...] each."""
    return (images + ((points - images) / STEP).trunc() * STEP).clamp(0, 1)


class TamperProof(nn.Module):
    """A network for images as files hold them, and a sturdy one for all that cannot come from a file."""

    def __init__(self, weak: nn.Module, sturdy: nn.Module):
        super().__init__()
        self.weak, self.sturdy = weak, sturdy

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(off_grid(images)[:, None], self.sturdy(images), self.weak(images))


def tamper_proof(on: Task) -> nn.Module:
    return TamperProof(undefended(on.name), sturdy(on.name))


def right_at_images(on: Task) -> nn.Module:
    """The gradient is right at every image of the data set and reversed at every point off the grid."""
    return Masked(undefended(on.name), undefended(on.name), off_grid, reversed_gradient)
