"""A directory of images of the user's own, `imagefolder:PATH`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustbench_local.data.catalog import DatasetEntry, LoadRequest

if TYPE_CHECKING:
    from robustbench_local.data.dataset import Dataset


def load(request: LoadRequest) -> Dataset:
    """All images under the path."""
    from robustbench_local.data.imagefolder import load_imagefolder

    assert request.path is not None
    return load_imagefolder(request.path, resize=request.resize, class_names=request.class_names)


DATASET = DatasetEntry(
    name="imagefolder",
    description="one directory of images per class, without splits, decoded when needed",
    load=load,
    splits=(),
    takes_path=True,
    image_files=True,
)
