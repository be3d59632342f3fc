"""Networks of which a part of the layers hides its gradient, while another part shows an honest one."""

from __future__ import annotations

import torch
from partial import sturdy
from tasks import Task, undefended
from torch import Tensor, nn


class RoundedBranch(nn.Module):
    """A main branch whose input is rounded, and a residual branch that nothing is done to.

    share: of the residual branch in the logits.
    """

    def __init__(self, main: nn.Module, residual: nn.Module, levels: int, share: float):
        super().__init__()
        self.main, self.residual, self.levels, self.share = main, residual, levels, share

    def _rounded(self, images: Tensor) -> Tensor:
        return (images * self.levels).round() / self.levels

    def forward(self, images: Tensor) -> Tensor:
        return (1 - self.share) * self.main(self._rounded(images)) + self.share * self.residual(images)

    def straight(self, images: Tensor) -> Tensor:
        """The same with the gradient of the identity for the rounding."""
        rounded = images + (self._rounded(images) - images).detach()
        return (1 - self.share) * self.main(rounded) + self.share * self.residual(images)


class PartlyDetached(nn.Module):
    """A network whose first layer's channels pass no gradient on, but for a share."""

    def __init__(self, core: nn.Sequential, share: float):
        super().__init__()
        self.core, self.first, self.rest, self.share = core, core[:2], core[2:], share

    def forward(self, images: Tensor) -> Tensor:
        values = self.first(images)
        kept = round(self.share * values.shape[1])
        return self.rest(torch.cat([values[:, :kept], values[:, kept:].detach()], 1))


def rounded_branch(on: Task) -> nn.Module:
    return RoundedBranch(undefended(on.name), sturdy(on.name), 32, 0.3)


def detached_channels(on: Task) -> nn.Module:
    return PartlyDetached(undefended(on.name), 1 / 8)
