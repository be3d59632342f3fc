"""Augmentation of training images, drawn for every image separately.

Crop, flip and cutout work on the whole batch, on its device. The others are torchvision's, image by image. All random
numbers come from the images' keys, so neither the batch nor the number of workers changes the result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_local.attacks.randomness import fold_in, uniform
from robustbench_local.errors import UserError, nearest
from robustbench_local.io.safe_read import quoted
from robustbench_local.numbers import parse_number

Transform = Callable[[Tensor, Tensor], Tensor]
_GENERATOR_LOCK = threading.Lock()


def _crop(size: float) -> Transform:
    """Shift by up to this many pixels; the padding is black."""
    distance = int(size)

    def crop(images: Tensor, keys: Tensor) -> Tensor:
        rows, channels, height, width = images.shape
        down, right = (uniform(keys, (2,)) * (2 * distance + 1)).long().unbind(1)
        padded = F.pad(images, [distance] * 4)
        lines = torch.arange(height, device=images.device) + down[:, None]
        columns = torch.arange(width, device=images.device) + right[:, None]
        row, channel = torch.arange(rows, device=images.device), torch.arange(channels, device=images.device)
        return padded[
            row[:, None, None, None], channel[None, :, None, None], lines[:, None, :, None], columns[:, None, None, :]
        ]

    return crop


def _flip(share: float) -> Transform:
    """Mirror this share of images left to right."""

    def flip(images: Tensor, keys: Tensor) -> Tensor:
        return torch.where(uniform(keys, (1, 1, 1)) < share, images.flip(-1), images)

    return flip


def _cutout(size: float) -> Transform:
    """Cover a square with this many pixels a side in gray, anywhere (DeVries and Taylor, 2017)."""
    half = size / 2

    def cutout(images: Tensor, keys: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        places = uniform(keys, (2,)) * torch.tensor([height, width], device=images.device)
        lines = torch.arange(height, device=images.device) + 0.5 - places[:, :1]
        columns = torch.arange(width, device=images.device) + 0.5 - places[:, 1:]
        hidden = (lines.abs() < half)[:, None, :, None] & (columns.abs() < half)[:, None, None, :]
        return images.masked_fill(hidden, 0.5)

    return cutout


def _per_image(make: Callable[[tuple[int, int]], Any]) -> Transform:
    """A torchvision transform that draws its random numbers from each image's key, not from the global stream."""

    def transform(images: Tensor, keys: Tensor) -> Tensor:
        augment = make((images.shape[-2], images.shape[-1]))
        augmented = []
        # torchvision draws from the process's generator, so threads take turns.
        with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
            for image, key in zip(images.cpu(), keys.tolist(), strict=True):
                torch.default_generator.manual_seed(key % 2**63)
                augmented.append(augment(image))
        return torch.stack(augmented).to(images.device).clamp(0, 1)  # interpolation may overshoot

    return transform


def _torchvision(name: str, value: float) -> Transform:
    from torchvision.transforms import v2

    kinds: dict[str, Callable[[tuple[int, int]], Any]] = {
        "resized-crop": lambda size: v2.RandomResizedCrop(size, scale=(value, 1.0), antialias=True),
        "color-jitter": lambda _: v2.ColorJitter(value, value, value),
        "rotate": lambda _: v2.RandomRotation(value),
        "trivial-augment": lambda _: v2.TrivialAugmentWide(),
        "rand-augment": lambda _: v2.RandAugment(magnitude=int(value)),
    }
    return _per_image(kinds[name])


@dataclass(frozen=True)
class _Kind:
    """default: the number where none is given; None where one is required. most: the largest number."""

    default: float | None
    most: float
    meaning: str
    whole: bool = False


KINDS = {
    "crop": _Kind(None, 512, "pixels to shift by", whole=True),
    "flip": _Kind(0.5, 1, "share of images"),
    "cutout": _Kind(None, 512, "pixels of the square"),
    "resized-crop": _Kind(0.08, 1, "smallest share of the area"),
    "color-jitter": _Kind(0.4, 1, "strength"),
    "rotate": _Kind(15, 180, "degrees"),
    "trivial-augment": _Kind(1, 1, "no number"),
    "rand-augment": _Kind(9, 30, "magnitude", whole=True),
}


class Augmentation:
    """`crop=4,flip,cutout=8` as one function of images float [rows, C, H, W] in [0, 1] and keys int64 [rows]."""

    def __init__(self, steps: list[Transform]):
        self._steps = steps

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        for number, step in enumerate(self._steps):
            images = step(images, fold_in(keys, torch.full_like(keys, number)))
        return images

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """The augmentation for an `--augment` text; `none` does nothing.

        Raises UserError for an unknown name, or a number out of range.
        """
        return cls([_parse(part.strip(), text) for part in text.split(",")] if text != "none" else [])


def _parse(part: str, text: str) -> Transform:
    name, equals, number = part.partition("=")
    where = f"--augment {quoted(text)}"
    if name not in KINDS:
        raise UserError(
            f"{where}: there is no {quoted(name)}: choose from {', '.join(KINDS)} and none.{nearest(name, KINDS)}",
            slug="unknown-augmentation",
        )
    kind = KINDS[name]
    try:
        value = parse_number(number) if equals else kind.default
    except ValueError as error:
        raise UserError(f"{where}: {name}: {error}", slug="not-a-number") from None
    if value is None:
        raise UserError(
            f"{where}: {name} needs a number ({kind.meaning}), as in {name}=4", slug="augmentation-without-number"
        )
    if not 0 < value <= kind.most:
        raise UserError(
            f"{where}: {name} is {value:g} ({kind.meaning}), but must be above 0 and at most {kind.most:g}",
            slug="augmentation-out-of-range",
        )
    if kind.whole and value != int(value):
        raise UserError(
            f"{where}: {name} is {value:g} ({kind.meaning}), but must be a whole number", slug="not-an-integer"
        )
    own = {"crop": _crop, "flip": _flip, "cutout": _cutout}
    return own[name](value) if name in own else _torchvision(name, value)
