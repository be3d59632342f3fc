"""Pre-activation ResNet-18 for small images; parameters are named as in the public CIFAR checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Normalize, activate, convolve, twice, around a skip (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        skip = self.shortcut(active) if hasattr(self, "shortcut") else x
        output: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)))) + skip
        return output


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(PreActBlock(inputs, outputs, stride), PreActBlock(outputs, outputs, 1))


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18 for small images.

    `final_norm` adds the paper's batch norm after the last block. Public checkpoints come in both forms: one without
    `bn.weight` was trained without it.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, final_norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.layer1 = _stage(64, 64, 1)
        self.layer2 = _stage(64, 128, 2)
        self.layer3 = _stage(128, 256, 2)
        self.layer4 = _stage(256, 512, 2)
        if final_norm:
            self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)

    @staticmethod
    def options_from_weights(state: Mapping[str, Tensor]) -> dict[str, int | bool]:
        return {"final_norm": "bn.weight" in state}

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if hasattr(self, "bn"):
            x = F.relu(self.bn(x))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits
