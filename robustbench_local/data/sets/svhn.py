"""Street View House Numbers (Netzer et al., 2011), read through torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustbench_local.data.catalog import SMALL_COLOR_EPS, DatasetEntry, LoadRequest

if TYPE_CHECKING:
    from robustbench_local.data.dataset import Dataset


def load(request: LoadRequest) -> Dataset:
    """73,257 training or 26,032 test images."""
    from robustbench_local.data.torchvision import load_svhn

    return load_svhn(request)


DATASET = DatasetEntry(
    name="svhn", description="99,289 32x32 color house numbers (torchvision)", load=load, default_eps=SMALL_COLOR_EPS
)
