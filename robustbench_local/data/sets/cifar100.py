"""CIFAR-100 (Krizhevsky, 2009), read through torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustbench_local.data.catalog import SMALL_COLOR_EPS, DatasetEntry, LoadRequest

if TYPE_CHECKING:
    from robustbench_local.data.dataset import Dataset


def load(request: LoadRequest) -> Dataset:
    """50,000 training or 10,000 test images."""
    from robustbench_local.data.torchvision import load_cifar

    return load_cifar("cifar100", request)


DATASET = DatasetEntry(
    name="cifar100",
    description="60,000 32x32 color images, 100 classes (torchvision)",
    load=load,
    default_eps=SMALL_COLOR_EPS,
)
