"""A small convolutional network for images of one fixed size."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Two 4×4 convolutions of stride 2 and two linear layers: the verification literature's small network."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        self.image_size = image_size
        self.conv1 = nn.Conv2d(in_channels, 16, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self.linear1 = nn.Linear(32 * (image_size // 4) ** 2, 100)
        self.linear2 = nn.Linear(100, num_classes)

    @staticmethod
    def options_from_weights(state: Mapping[str, Tensor]) -> dict[str, int | bool]:
        """The image size (a multiple of 4, at most 256) that the first linear layer is made for."""
        weight = state.get("linear1.weight")
        if weight is None or weight.ndim != 2:
            return {}
        size = 4 * math.isqrt(weight.shape[1] // 32)
        return {"image_size": size} if 8 <= size <= 256 and 32 * (size // 4) ** 2 == weight.shape[1] else {}

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        logits: Tensor = self.linear2(F.relu(self.linear1(x.flatten(1))))
        return logits
