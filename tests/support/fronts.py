"""Functions that clip an image to the box, and so change no legal image, and a module around a function."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def normalized(mean, std):
    """Clips between normalizing and its inverse."""
    return lambda x: ((x - mean) / std).clamp((0 - mean) / std, (1 - mean) / std) * std + mean


FRONTS = {
    "clamp": lambda x: x.clamp(0, 1),
    "hardtanh": nn.Hardtanh(0, 1),
    "relus": lambda x: 1 - torch.relu(1 - torch.relu(x)),
    "gray-levels": lambda x: (x * 255).clamp(0, 255) / 255,
    "signed": lambda x: (functional.hardtanh(2 * x - 1) + 1) / 2,
}


class Front(nn.Module):
    """A function of images as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)
