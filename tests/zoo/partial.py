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


def of_classes(on: Task, *classes: int) -> Gate:
    """Images that the sturdy network takes for one of these classes."""
    chosen = torch.tensor(classes)
    return lambda images: torch.isin(sturdy(on.name)(images).argmax(1), chosen)


def hashed(on: Task, of: int) -> Gate:
    """One in so many images, by which of its quarters are brighter than they are in half of the training images."""

    def quarters(images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    middle = quarters(on.images).median(0).values
    return lambda images: ((quarters(images) > middle) * torch.tensor([1, 2, 3, 5])).sum(1) % of == 0


class FarFromTheBorder:
    """Images whose margin under the sturdy network is among that share of the largest ones."""

    def __init__(self, on: Task, share: float):
        self.sturdy = sturdy(on.name)
        self.least = self.margin(on.images).quantile(1 - share)

    def margin(self, images: Tensor) -> Tensor:
        """How far the best logit of the sturdy network leads, [rows]."""
        first, second = self.sturdy(images).topk(2).values.unbind(1)
        return first - second

    def __call__(self, images: Tensor) -> Tensor:
        return self.margin(images) >= self.least


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


class _Random(torch.autograd.Function):
    """The identity, with the lengths of the gradient in random directions."""

    @staticmethod
    def forward(_, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        return gradient.abs() * torch.randn_like(gradient).sign()


def random_gradient(core: nn.Module, images: Tensor) -> Tensor:
    return core(_Random.apply(images))


def saturated(core: nn.Module, images: Tensor) -> Tensor:
    """Squashed by a tanh about the middle of the two highest logits, until the gradient is 0."""
    logits = core(images)
    return 10 * torch.tanh(20 * (logits - logits.topk(2).values.mean(1, keepdim=True)))


def whole_numbers(core: nn.Module, images: Tensor) -> Tensor:
    """Logits without the digits after the point."""
    return core(images).round()


def noisy_where_differentiated(core: nn.Module, images: Tensor) -> Tensor:
    """Much noise on the pixels where gradients are recorded, none where only the answer is asked."""
    noise = 0.5 * torch.randn_like(images) if torch.is_grad_enabled() and images.requires_grad else 0.0
    return core(images + noise)


def noisy(core: nn.Module, images: Tensor) -> Tensor:
    return 4 * core(images + 0.1 * torch.randn_like(images))


def turned_channels(core: nn.Module, images: Tensor) -> Tensor:
    """Three quarters of the first layer's channels send their gradient the wrong way."""
    values = core[:2](images)
    kept = values.shape[1] // 4
    return core[2:](torch.cat([values[:, :kept], _Reversed.apply(values[:, kept:])], 1))


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


def masked(on: Task, gate: Gate, mask: Mask) -> nn.Module:
    return Masked(sturdy(on.name), undefended(on.name), gate, mask)


def borrowed_gradient(on: Task) -> nn.Module:
    """The answers of one network for three classes, with the gradients of the other."""

    def borrowed(core: nn.Module, images: Tensor) -> Tensor:
        lent = sturdy(on.name)(images)
        return lent + (core(images) - lent).detach()

    return masked(on, of_classes(on, 1, 8, 9), borrowed)


def confident(on: Task) -> nn.Module:
    return masked(on, FarFromTheBorder(on, 0.8), rippled_pixels)


def kept_confident(module: Masked) -> Callable[[Tensor], Tensor]:
    """The weak network's logits, with that of the sturdy network's class raised where the gate is about to close."""

    def logits(images: Tensor) -> Tensor:
        lacks = (module.gate.least + 0.2 - module.gate.margin(images)).clamp_min(0)
        likeliest = nn.functional.one_hot(module.sturdy(images).argmax(1), 10)
        return module.weak(images) + 2 * lacks[:, None] * likeliest

    return logits
