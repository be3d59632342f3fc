"""A numpy archive of the user's own, `npz:PATH`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustbench_local.data.catalog import DatasetEntry, LoadRequest

if TYPE_CHECKING:
    from robustbench_local.data.dataset import Dataset


def load(request: LoadRequest) -> Dataset:
    """All images of the archive."""
    from robustbench_local.data.npz import load_npz

    assert request.path is not None
    return load_npz(request.path, request.class_names)


DATASET = DatasetEntry(
    name="npz",
    description="a numpy archive, without splits: `images` uint8 NHWC or float NCHW in [0,1], `labels` integers",
    load=load,
    splits=(),
    takes_path=True,
)
