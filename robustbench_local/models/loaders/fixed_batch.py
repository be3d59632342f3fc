"""Programs that were exported for one batch size."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FixedBatch(nn.Module):
    """Any number of images for a program that takes exactly `size` at a time: the last batch is padded."""

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module = module
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        rows = []
        for part in images.split(self.size):
            missing = self.size - len(part)
            padded = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            rows.append(self.module(padded)[: len(part)])
        return torch.cat(rows)
