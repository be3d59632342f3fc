"""Defenses that mask some of the images and are honest about the others: what is seen on most images says nothing.

All of them hold an adversarially trained network that answers for most images, and one that nobody has defended, which
answers for the others behind a mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from honest import trained
from tasks import Task, undefended
from torch import Tensor, nn

Gate = Callable[[Tensor], Tensor]
"""Images [rows, ...] to bool [rows]: whether an image is masked."""
Mask = Callable[[nn.Module, Tensor], Tensor]
"""A network and images [rows, ...] to logits [rows, classes] that say what the network says and hide its gradient."""


@functools.cache
def sturdy(data: str) -> nn.Module:
    """An adversarially trained network that masks nothing."""
    return trained(data)["pgd-at-0"].build()


class Masked(nn.Module):
    """An undefended network behind a mask where a gate says so, and a sturdy one elsewhere."""

    def __init__(self, sturdy: nn.Module, weak: nn.Module, gate: Gate, mask: Mask):
        super().__init__()
        self.sturdy, self.weak, self.gate, self.mask = sturdy, weak, gate, mask

    def forward(self, images: Tensor) -> Tensor:
        return self._answer(images, self.mask)

    def unmasked(self, images: Tensor) -> Tensor:
        """The same without the mask, whose logits may differ a little."""
        return self._answer(images, lambda network, rows: network(rows))

    def _answer(self, images: Tensor, mask: Mask) -> Tensor:
        return torch.where(self.gate(images)[:, None], mask(self.weak, images), self.sturdy(images))


# Which images.


def brightness(images: Tensor) -> Tensor:
    """The mean of the pixels, [rows]."""
    return images.flatten(1).mean(1)


def brightest(on: Task, share: float) -> Gate:
    """Images as bright as that share of the training images."""
    least = brightness(on.images).quantile(1 - share)
    return lambda images: brightness(images) >= least


# How.


def rippled_logits(core: nn.Module, images: Tensor) -> Tensor:
    """Four times the logits, with a ripple that is low and steep: it turns a gradient round and back again."""
    logits = 4 * core(images)
    return logits + 0.3 * torch.sin(2000 * logits)


def rippled_pixels(core: nn.Module, images: Tensor) -> Tensor:
    """A ripple on every pixel, of a hundredth of its range."""
    return 4 * core(images + 0.01 * torch.sin(5000 * images))


class _Reversed(torch.autograd.Function):
    """The identity, with the gradient of its negative."""

    @staticmethod
    def forward(_, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        return -gradient


def reversed_gradient(core: nn.Module, images: Tensor) -> Tensor:
    """A front that is the identity and sends every search the wrong way."""
    return 4 * core(_Reversed.apply(images))


MASKS: dict[str, Mask] = {
    "rippled-logits": rippled_logits,
    "rippled-pixels": rippled_pixels,
    "reversed-gradient": reversed_gradient,
}
RIPPLES = {
    "rippled-logits": "a steep ripple on the logits",
    "rippled-pixels": "a steep ripple on the pixels",
    "reversed-gradient": "a backward with the sign reversed",
}
SHARES = (0.05, 0.2, 0.5)


def masks_brightest(on: Task, share: float, ripple: str) -> nn.Module:
    return Masked(sturdy(on.name), undefended(on.name), brightest(on, share), MASKS[ripple])
