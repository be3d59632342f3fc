"""From `--data SPEC` to labeled images. Imports torch only when a dataset is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_local.data.catalog import LoadRequest, default_eps, find_dataset, list_datasets, registered_datasets
from robustbench_local.errors import UserError, nearest
from robustbench_local.io.safe_read import printable, quoted

if TYPE_CHECKING:
    import torch

    from robustbench_local.data.catalog import DatasetEntry
    from robustbench_local.data.dataset import Dataset
    from robustbench_local.data.resize import Resize

__all__ = ["default_eps", "list_datasets", "load_dataset", "require_files", "require_known", "stratified_subset"]


def load_dataset(
    spec: str,
    *,
    split: str = "test",
    data_dir: str | Path | None = None,
    download: bool = False,
    resize: Resize | None = None,
    class_names: list[str] | None = None,
) -> Dataset:
    """The dataset for a `--data` text: a name of `list_datasets()`, `imagefolder:PATH` or `npz:PATH`.

    split: `"test"` or `"train"` (ImageNet also `"val"`, which is its `"test"`); sets given by a path have no splits.
    data_dir: where downloaded sets are, by default $ROBUST_DATA or `data`. download: fetch a set that is not there.
    resize: for sets of image files; arrays keep their size. class_names: the model's, which class directories are
    matched with. Raises UserError for unknown names and splits, and for whatever cannot be read.
    """
    entry = require_known(spec)
    _, _, path = spec.partition(":")
    if entry.takes_path and not path:
        raise UserError(f"--data {printable(spec)} has no path: write {entry.spec}", slug="dataset-without-path")
    if entry.splits and split not in entry.splits:
        raise UserError(
            f"{printable(spec)} has no split {quoted(split)}: choose {' or '.join(entry.splits)} with --split."
            f"{nearest(split, entry.splits)}",
            slug="unknown-split",
        )
    return entry.load(
        LoadRequest(
            split=split,
            path=Path(path).expanduser() if path else None,
            data_dir=Path(data_dir or os.environ.get("ROBUST_DATA") or "data").expanduser(),
            download=download,
            resize=resize,
            class_names=class_names,
        )
    )


def require_known(spec: str) -> DatasetEntry:
    """The catalog entry of a `--data` text.

    Raises UserError where there is none.
    """
    entry = find_dataset(spec)
    # A path without its colon gets the advice of a known name too.
    if entry is not None:
        return entry
    names = ", ".join(entry.spec for entry in registered_datasets().values())
    raise UserError(f"there is no dataset {quoted(spec)}: choose one of {names}.{_hint(spec)}", slug="unknown-dataset")


def require_files(spec: str) -> None:
    """Raises UserError where `--resize` does not apply, because the images are arrays of a fixed size."""
    entry = find_dataset(spec)
    if entry is None or not entry.image_files:
        raise UserError(
            f"--resize is for image files, but {printable(spec)} has arrays: leave --resize out",
            slug="resize-without-files",
        )


def stratified_subset(labels: torch.Tensor, samples: int, seed: int) -> torch.Tensor:
    """Sorted positions of a seeded subset with the class proportions of `labels`; see `data.stratified`."""
    from robustbench_local.data import stratified

    return stratified.stratified_subset(labels, samples, seed)


def _hint(spec: str) -> str:
    path = Path(spec).expanduser()
    if path.is_dir():
        return f" For the directory of that name write imagefolder:{spec}."
    if path.suffix == ".npz":
        return f" For the file of that name write npz:{spec}."
    return nearest(spec.lower(), [entry.spec for entry in registered_datasets().values()])
