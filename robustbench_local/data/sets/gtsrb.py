"""German Traffic Sign Recognition Benchmark (Stallkamp et al., 2011), read through torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustbench_local.data.catalog import SMALL_COLOR_EPS, DatasetEntry, LoadRequest

if TYPE_CHECKING:
    from robustbench_local.data.dataset import Dataset


def load(request: LoadRequest) -> Dataset:
    """26,640 training or 12,630 test images."""
    from robustbench_local.data.torchvision import load_gtsrb

    return load_gtsrb(request)


DATASET = DatasetEntry(
    name="gtsrb",
    description="German traffic signs, 43 classes, resized whole to 32x32 (torchvision)",
    load=load,
    default_eps=SMALL_COLOR_EPS,
    image_files=True,
)
