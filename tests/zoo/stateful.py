"""Models whose answer depends on more than the image: on its batch, on the mode of autograd, on what came before."""

from __future__ import annotations

import torch
from partial import sturdy
from tasks import Task, undefended
from torch import Tensor, nn


class Branching(nn.Module):
    """Two networks; which of them answers depends on something else than the image."""

    def __init__(self, sturdy: nn.Module, weak: nn.Module):
        super().__init__()
        self.sturdy, self.weak = sturdy, weak


class BatchOfOne(Branching):
    """The sturdy network answers batches; a single image, as in use, goes to the weak one."""

    def forward(self, images: Tensor) -> Tensor:
        return self.weak(images) if len(images) == 1 else self.sturdy(images)


class GradMode(Branching):
    """The weak network answers, and the sturdy one where gradients are recorded."""

    def forward(self, images: Tensor) -> Tensor:
        return self.sturdy(images) if torch.is_grad_enabled() and images.requires_grad else self.weak(images)


class BatchGate(Branching):
    """The brighter half of a batch goes to the sturdy network and the rest to the weak one."""

    def forward(self, images: Tensor) -> Tensor:
        order = images.flatten(1).mean(1).argsort(descending=True)
        half = -(-len(images) // 2)
        answers = torch.cat([self.sturdy(images[order[:half]]), self.weak(images[order[half:]])])
        return answers[order.argsort()]


MOST_SEEN = 2000
"""Images that are remembered."""


class Remembering(nn.Module):
    """Repeats for a near-duplicate of an image that it has seen the answer that it gave then.

    near: the largest distance in a pixel of a near-duplicate.
    """

    def __init__(self, core: nn.Module, near: float):
        super().__init__()
        self.core, self.near = core, near
        self.seen: list[Tensor] = []
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits = self.core(images)
        if not self.seen:
            self._remember(images, logits)
            return logits
        seen, given = torch.cat(self.seen), torch.cat(self.given)
        distances, nearest = torch.cdist(images.flatten(1), seen.flatten(1), p=float("inf")).min(1)
        known = distances <= self.near
        if len(seen) < MOST_SEEN:
            self._remember(images[~known], logits[~known])
        return torch.where(known[:, None], given[nearest] + 0 * logits, logits)

    def _remember(self, images: Tensor, logits: Tensor) -> None:
        if len(images):
            self.seen.append(images.detach().clone())
            self.given.append(logits.detach().clone())


def batch_of_one(on: Task) -> nn.Module:
    return BatchOfOne(sturdy(on.name), undefended(on.name))


def grad_mode(on: Task) -> nn.Module:
    return GradMode(sturdy(on.name), undefended(on.name))


def batch_gate(on: Task) -> nn.Module:
    return BatchGate(sturdy(on.name), undefended(on.name))


def remembering(on: Task) -> nn.Module:
    return Remembering(undefended(on.name), 2 * float(on.eps))


class Counting(Branching):
    """Suspects an attack once it has been asked about so many images: from then on the sturdy network answers."""

    most = 1000

    def __init__(self, sturdy: nn.Module, weak: nn.Module):
        super().__init__(sturdy, weak)
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.sturdy(images) if self.asked > self.most else self.weak(images)


def counting(on: Task) -> nn.Module:
    return Counting(sturdy(on.name), undefended(on.name))
