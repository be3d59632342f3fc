"""ImageNet 2012 (Russakovsky et al., 2015), read through torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustbench_local.data.catalog import DatasetEntry, LoadRequest

if TYPE_CHECKING:
    from robustbench_local.data.dataset import Dataset


def load(request: LoadRequest) -> Dataset:
    """1,281,167 training or 50,000 validation images."""
    from robustbench_local.data.torchvision import load_imagenet

    return load_imagenet(request)


DATASET = DatasetEntry(
    name="imagenet",
    description="ImageNet 2012, test is its validation set, no download; resized to the model's size, else to 256 and "
    "cropped to 224 (torchvision)",
    load=load,
    default_eps={"linf": "4/255"},
    splits=("test", "train", "val"),
    image_files=True,
)
