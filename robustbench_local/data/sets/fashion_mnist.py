"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), read through torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustbench_local.data.catalog import DatasetEntry, LoadRequest

if TYPE_CHECKING:
    from robustbench_local.data.dataset import Dataset


def load(request: LoadRequest) -> Dataset:
    """60,000 training or 10,000 test images."""
    from robustbench_local.data.torchvision import load_mnist

    return load_mnist("fashion-mnist", request)


DATASET = DatasetEntry(
    name="fashion-mnist",
    description="70,000 28x28 grayscale images of clothes (torchvision)",
    load=load,
    default_eps={"linf": "0.1"},
)
