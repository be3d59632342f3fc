"""Small networks of every family for grayscale images of 8×8 pixels. None masks anything.

Each takes the number of classes and gives an untrained module: images float [rows, 1, 8, 8] -> logits [rows, classes].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint
from torchvision.models.vision_transformer import VisionTransformer

SIZE = 8
Layer = Callable[[], nn.Module]
Norm = Literal["none", "batch", "group", "layer"]
Pool = Literal["stride", "max", "avg"]


def _norm(norm: Norm, channels: int, size: int) -> list[nn.Module]:
    layers: dict[str, Layer] = {
        "batch": lambda: nn.BatchNorm2d(channels),
        "group": lambda: nn.GroupNorm(4, channels),
        "layer": lambda: nn.LayerNorm([channels, size, size]),
    }
    return [layers[norm]()] if norm in layers else []


def convolutional(
    classes: int, *, activation: Layer = nn.ReLU, norm: Norm = "none", pool: Pool = "stride", width: int = 12
) -> nn.Sequential:
    """Two convolutions, which are strided or followed by pooling, and two linear layers."""
    stride = 2 if pool == "stride" else 1
    pools: dict[str, Layer] = {"max": lambda: nn.MaxPool2d(2), "avg": lambda: nn.AvgPool2d(2)}
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate([(1, width), (width, 2 * width)]):
        size = SIZE // 2**number // stride
        layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), *_norm(norm, after, size), activation()]
        layers += [pools[pool]()] if pool in pools else []
    left = 2 * width * (SIZE // 4) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(left, 48), activation(), nn.Linear(48, classes))


class _Residual(nn.Module):
    def __init__(self, channels: int, *, inplace: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])
        self.activation = nn.ReLU(inplace=inplace)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.activation(self.norms[0](self.first(images)))
        return self.activation(images + self.norms[1](self.second(inner)))


def residual(classes: int, *, inplace: bool = False, width: int = 12) -> nn.Sequential:
    """A stem and two residual blocks, then the mean over the image."""
    stem = nn.Sequential(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace))
    blocks = [_Residual(width, inplace=inplace) for _ in range(2)]
    return nn.Sequential(stem, *blocks, nn.Flatten(), nn.Linear(width * 16, classes))


def depthwise(classes: int, width: int = 24) -> nn.Sequential:
    """Depthwise and pointwise convolutions, as in MobileNet, with ReLU6."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
        nn.Conv2d(width, width, 1),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(width * 16, classes),
    )


def perceptron(classes: int, *, activation: Layer = nn.ReLU, dropout: float = 0.0) -> nn.Sequential:
    """Three linear layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in ((SIZE**2, 96), (96, 48)):
        layers += [nn.Linear(before, after), activation(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(48, classes))


def _patches(images: Tensor) -> Tensor:
    """Sixteen patches of 2×2 pixels, [rows, 16, 4]."""
    return nn.functional.unfold(images, 2, stride=2).transpose(1, 2)


class Transformer(nn.Module):
    """A vision transformer on patches of 2×2 pixels, its block from torch.nn."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.position = nn.Parameter(torch.randn(1, 16, width) / math.sqrt(width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(_patches(images)) + self.position).mean(1))


class TorchvisionTransformer(nn.Module):
    """torchvision's vision transformer, on gray images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = VisionTransformer(SIZE, 2, 2, 4, 32, 64, num_classes=classes)
        nn.init.trunc_normal_(self.body.heads.head.weight, std=0.1)  # zeros do not learn in so few steps

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images.expand(-1, 3, -1, -1))


class _MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.across = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.within = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.across(self.norms[0](tokens).transpose(1, 2)).transpose(1, 2)
        return tokens + self.within(self.norms[1](tokens))


class Mixer(nn.Module):
    """An MLP-mixer on patches of 2×2 pixels."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.blocks = nn.Sequential(_MixerBlock(16, width), _MixerBlock(16, width), nn.LayerNorm(width))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(_patches(images))).mean(1))


class EarlyExit(nn.Module):
    """Rows of which the first head is sure leave there; the others go through the rest. Both heads learn."""

    def __init__(self, classes: int, *, sure: float = 0.9, width: int = 12) -> None:
        super().__init__()
        self.sure = sure
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU())
        self.first_head = nn.Sequential(nn.Flatten(), nn.Linear(width * 16, classes))
        self.second = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
        self.second_head = nn.Sequential(nn.Linear(2 * width * 4, 48), nn.ReLU(), nn.Linear(48, classes))

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        early = self.first_head(features)
        if self.training:
            return (early + self.second_head(self.second(features))) / 2
        stays = early.softmax(1).amax(1) < self.sure
        if not stays.any():
            return early
        logits = early.clone()
        logits[stays] = self.second_head(self.second(features[stays]))
        return logits


class LocallyConnected(nn.Module):
    """A layer whose 3×3 filters differ from place to place, then two linear layers."""

    def __init__(self, classes: int, width: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIZE**2, width, 9) / 3)
        self.bias = nn.Parameter(torch.zeros(SIZE**2, width))
        self.rest = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(SIZE**2 * width, 48), nn.ReLU())
        self.head = nn.Linear(48, classes)

    def forward(self, images: Tensor) -> Tensor:
        places = nn.functional.unfold(images, 3, padding=1).permute(2, 0, 1)
        found = torch.bmm(places, self.weight.transpose(1, 2)).transpose(0, 1) + self.bias
        return self.head(self.rest(found))


def gabor(classes: int) -> nn.Sequential:
    """A front of fixed Gabor filters of 5×5 pixels, of eight directions and two phases; the rest learns."""
    front = nn.Conv2d(1, 16, 5, padding=2, bias=False)
    side = torch.arange(5.0) - 2
    down, right = torch.meshgrid(side, side, indexing="ij")
    kernels = []
    for direction in range(8):
        angle = math.pi * direction / 8
        along = right * math.cos(angle) + down * math.sin(angle)
        envelope = torch.exp(-(right**2 + down**2) / 4)
        kernels += [envelope * torch.cos(math.pi * along / 2 + phase) for phase in (0.0, math.pi / 2)]
    with torch.no_grad():
        front.weight.copy_(torch.stack(kernels)[:, None] / 4)
    front.requires_grad_(False)
    body = [nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, classes)]
    return nn.Sequential(front, *body)


def lipschitz(classes: int) -> nn.Sequential:
    """Linear layers of spectral norm 1 with LeakyReLU: margins are distances."""
    sizes = (SIZE**2, 96, 96, classes)
    linear = [spectral_norm(nn.Linear(before, after)) for before, after in pairwise(sizes)]
    return nn.Sequential(
        nn.Flatten(), linear[0], nn.LeakyReLU(0.5), linear[1], nn.LeakyReLU(0.5), linear[2], Scaled(16.0)
    )


class SharedWeights(nn.Module):
    """One linear layer, called twice."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.start, self.middle = nn.Linear(SIZE**2, width), nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.start(images.flatten(1)).relu()
        for _ in range(2):
            features = self.middle(features).relu()
        return self.head(features)


class Checkpointed(nn.Module):
    """Features are computed again in the backward pass: non-reentrant gradient checkpointing."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        *features, head = convolutional(classes)
        self.features, self.head = nn.Sequential(*features), head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(checkpoint(self.features, images, use_reentrant=False))


class InPlaceInput(nn.Module):
    """The images are centered in place, in a copy, where autograd does not look: the gradient is the same."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        images = images.clone()
        with torch.no_grad():
            images.sub_(0.3).div_(0.4)
        return self.body(images)


class Overwriting(InPlaceInput):
    """The images are scaled in place, in the tensor of whoever calls."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            images.sub_(0.3).div_(0.4)
        return self.body(images)


class Scaled(nn.Module):
    """Times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


class Normalized(nn.Module):
    """The images are normalized by a layer of the network."""

    def __init__(self, body: nn.Module, mean: float = 0.3, std: float = 0.4) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        return self.body((images - self.mean) / self.std)


class Ensemble(nn.Module):
    """The mean of the members' logits."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)
