"""The architectures of our own: small networks for small images, and the three that CIFAR checkpoints come in.

Parameter names follow the checkpoints that the field shares, so that public files load as they are: the CIFAR ResNets
with `layer1.0.conv1 … shortcut.0 … linear`, the wide ResNet with `block1.layer.0.convShortcut … fc`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_local.errors import UserError, nearest


class DigitsCNN(nn.Module):
    """Two convolutions and two linear layers for 8×8 images; 38 thousand parameters, ReLU, no batch norm."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.linear1 = nn.Linear(32 * 4 * 4, 64)
        self.linear2 = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class SmallCNN(nn.Module):
    """Two 4×4 convolutions of stride 2 and two linear layers: the verification literature's small network."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self.linear1 = nn.Linear(32 * (image_size // 4) ** 2, 100)
        self.linear2 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class MediumCNN(nn.Module):
    """Four 3×3 convolutions with batch norm, averaged over the image: 0.4 million parameters, any image size."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        widths = (in_channels, 32, 64, 128, 256)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=1 if i == 0 else 2, padding=1, bias=False)
            for i, (before, after) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.linear(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Convolve, normalise, activate, twice, around a skip (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class PreActBlock(nn.Module):
    """Normalise, activate, convolve, twice, around a skip (He et al. 2016)."""

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
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + skip


def _stage(block: Callable[[int, int, int], nn.Module], inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(block(inputs, outputs, stride), block(outputs, outputs, 1))


class ResNet18(nn.Module):
    """ResNet-18 for small images: a 3×3 stem without pooling."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(BasicBlock, 64, 64, 1)
        self.layer2 = _stage(BasicBlock, 64, 128, 2)
        self.layer3 = _stage(BasicBlock, 128, 256, 2)
        self.layer4 = _stage(BasicBlock, 256, 512, 2)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18 for small images.

    `final_norm` puts the batch norm after the last block that the paper has. Both forms are in circulation; a
    checkpoint that holds no `bn.weight` was trained without it.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, final_norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.layer1 = _stage(PreActBlock, 64, 64, 1)
        self.layer2 = _stage(PreActBlock, 64, 128, 2)
        self.layer3 = _stage(PreActBlock, 128, 256, 2)
        self.layer4 = _stage(PreActBlock, 256, 512, 2)
        if final_norm:
            self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if hasattr(self, "bn"):
            x = F.relu(self.bn(x))
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    """A pre-activation block whose skip, where the width changes, starts after the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        skip = x if self.convShortcut is None else self.convShortcut(active)
        return skip + self.conv2(F.relu(self.bn2(self.conv1(active))))


class WideGroup(nn.Module):
    """`count` wide blocks; the first changes width and size."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        rest = [WideBlock(outputs, outputs, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Wide ResNet (Zagoruyko & Komodakis 2016), depth = 6·blocks + 4, without dropout."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, depth: int = 28, widen: int = 10) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.block1 = WideGroup(blocks, widths[0], widths[1], 1)
        self.block2 = WideGroup(blocks, widths[1], widths[2], 2)
        self.block3 = WideGroup(blocks, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


Factory = Callable[..., nn.Module]

ARCHITECTURES: dict[str, Factory] = {
    "digits-cnn": DigitsCNN,
    "cnn-small": SmallCNN,
    "cnn-medium": MediumCNN,
    "resnet18": ResNet18,
    "preact-resnet18": PreActResNet18,
    "wide-resnet-28-10": WideResNet,
}


def find_architecture(name: str) -> Factory:
    """The architecture's class. Raises UserError for an unknown name, with the nearest one."""
    if name not in ARCHITECTURES:
        raise UserError(
            f"unknown architecture {name!r}; there are {', '.join(ARCHITECTURES)}.{nearest(name, ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def build_architecture(
    name: str, num_classes: int = 10, in_channels: int | None = None, **options: int | bool
) -> nn.Module:
    """A fresh network with random weights from torch's global generator (seed it to repeat them).

    `in_channels` is the architecture's own when not given: 1 for `digits-cnn`, 3 elsewhere. `options`: `image_size`
    (28 or 32) for `cnn-small`, `final_norm` for `preact-resnet18`. Raises UserError for an unknown name or option.
    """
    factory = find_architecture(name)
    takes = inspect.signature(factory).parameters
    if unknown := [option for option in options if option not in takes]:
        raise UserError(f"architecture {name} takes no {unknown[0]}; it takes {', '.join(takes)}")
    if in_channels is not None:
        options["in_channels"] = in_channels
    return factory(num_classes=num_classes, **options)


def input_shape(module: nn.Module) -> tuple[int, int, int] | None:
    """(C, H, W) that one of these networks is tied to, or None where any image size will do."""
    if isinstance(module, DigitsCNN):
        size = 8
    elif isinstance(module, SmallCNN):
        size = 4 * round((module.linear1.in_features / 32) ** 0.5)
    else:
        return None
    return module.conv1.in_channels, size, size


def count_parameters(name: str) -> int:
    """Number of weights of an architecture, without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_architecture(name).parameters())
