"""The network of the bundled digits classifiers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Two convolutions and two linear layers for 8×8 images; 38 thousand parameters, ReLU, no batch norm."""

    image_size = 8

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.linear1 = nn.Linear(32 * 4 * 4, 64)
        self.linear2 = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        logits: Tensor = self.linear2(F.relu(self.linear1(x.flatten(1))))
        return logits
